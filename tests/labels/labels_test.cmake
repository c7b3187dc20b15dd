# SPDX-License-Identifier: MIT
# cmake -DCTEST=<ctest> -DBUILD=<folder> -P labels_test.cmake
# `ctest -L <label>` takes every test with a label that holds the text: so none may hold another.
execute_process(COMMAND ${CTEST} --print-labels WORKING_DIRECTORY ${BUILD} OUTPUT_VARIABLE output
                COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "\n  [^\n]+" lines "${output}")
list(TRANSFORM lines STRIP OUTPUT_VARIABLE labels)
list(LENGTH labels count)
if(count LESS 5)
  message(FATAL_ERROR "labels of tests not understood:\n${output}")
endif()
foreach(label IN LISTS labels)
  foreach(other IN LISTS labels)
    string(FIND ${other} ${label} place)
    if(NOT place EQUAL -1 AND NOT label STREQUAL other)
      message(SEND_ERROR "ctest -L ${label} takes the tests with the label ${other}, too")
    endif()
  endforeach()
endforeach()
