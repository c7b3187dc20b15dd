# SPDX-License-Identifier: MIT
# cmake -DEXPECTED=<program> -DACTUAL=<program> -P compare.cmake: both print the same and succeed.
foreach(role IN ITEMS EXPECTED ACTUAL)
  execute_process(COMMAND "${${role}}" OUTPUT_VARIABLE ${role}_lines RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${${role}} failed: ${result}\n${${role}_lines}")
  endif()
endforeach()
if(NOT EXPECTED_lines STREQUAL ACTUAL_lines)
  message(FATAL_ERROR "expected\n${EXPECTED_lines}\ngot\n${ACTUAL_lines}")
endif()
