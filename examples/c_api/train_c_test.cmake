# SPDX-License-Identifier: MIT
# train_c prints the same for any number of threads, and refuses what it does not know in one line.
foreach(threads IN ITEMS 1 3)
  set(ENV{OMP_NUM_THREADS} ${threads})
  execute_process(COMMAND ${PROGRAM} --steps 20 --lambda 0.1 OUTPUT_VARIABLE with_${threads}
                  RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "train_c with ${threads} threads ended with ${status}")
  endif()
endforeach()
if(NOT with_1 STREQUAL with_3)
  message(FATAL_ERROR "one thread printed\n${with_1}three threads\n${with_3}")
endif()

# refuses(<part of the message> [<argument>...])
function(refuses text)
  execute_process(COMMAND ${PROGRAM} ${ARGN} OUTPUT_VARIABLE out ERROR_VARIABLE err
                  RESULT_VARIABLE status)
  string(REGEX MATCHALL "\n" lines "${err}")
  list(LENGTH lines count)
  string(FIND "${err}" "${text}" place)
  if(NOT status EQUAL 2 OR NOT count EQUAL 1 OR place LESS 0 OR NOT out STREQUAL "")
    message(SEND_ERROR "train_c ${ARGN}: status ${status}, printed '${out}' and '${err}', which "
                       "should be one line with '${text}'")
  endif()
endfunction()

refuses("(got '--sparse')" --sparse)
refuses("a value after the last option (got '--lambda')" --moe --lambda)
refuses("--lambda to be a number (got '0.5x')" --lambda 0.5x)
refuses("lambda finite and >= 0 (got lambda=-1)" --lambda -1)
refuses("2 <= --steps <= 1000000 (got '1')" --steps 1)
refuses("1 <= --seed <= 1000000000 (got 'x')" --seed x)
refuses("--moe for a competition (got '--eliminate')" --dense --eliminate)
