# SPDX-License-Identifier: MIT
# Writes the report from DOCS/study into OUT, and compares every file with that in DOCS.
file(REMOVE_RECURSE ${OUT})
file(MAKE_DIRECTORY ${OUT})
execute_process(COMMAND ${PROGRAM} report --data ${DOCS}/study --docs ${OUT}
                COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
file(GLOB_RECURSE written RELATIVE ${OUT} ${OUT}/*)
file(GLOB committed RELATIVE ${DOCS} ${DOCS}/study/*.svg ${DOCS}/study/*.html)
list(APPEND committed evidence.md)
list(SORT written)
list(SORT committed)
if(NOT written STREQUAL committed)
  message(FATAL_ERROR "the report has the files ${written}, but committed are ${committed}")
endif()
foreach(file IN LISTS written)
  execute_process(COMMAND ${CMAKE_COMMAND} -E compare_files ${OUT}/${file} ${DOCS}/${file}
                  RESULT_VARIABLE differs)
  if(differs)
    message(FATAL_ERROR "docs/${file} is not what the data give: run `study report` and look at it")
  endif()
endforeach()
