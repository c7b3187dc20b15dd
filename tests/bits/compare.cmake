# SPDX-License-Identifier: MIT
# GATEPRO_ISA=<set> cmake [-DEMULATOR=<command>] -DEXPECTED=<program> -DACTUAL=<program> -P compare.cmake
# Both print the same and succeed.
foreach(role IN ITEMS EXPECTED ACTUAL)
  execute_process(COMMAND ${EMULATOR} "${${role}}" OUTPUT_VARIABLE ${role}_lines RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${${role}} failed: ${result}\n${${role}_lines}")
  endif()
endforeach()
if(NOT EXPECTED_lines MATCHES "^instruction set $ENV{GATEPRO_ISA}\n")
  message("skipped: this CPU has no $ENV{GATEPRO_ISA}")
  return()
endif()
if(NOT EXPECTED_lines STREQUAL ACTUAL_lines)
  message(FATAL_ERROR "expected\n${EXPECTED_lines}\ngot\n${ACTUAL_lines}")
endif()
