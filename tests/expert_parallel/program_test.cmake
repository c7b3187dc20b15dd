# SPDX-License-Identifier: MIT
# The first step has the same bits on any number of ranks; what goes wrong ends the job.

# job(<ranks> [<argument>...]): sets status, out and err.
macro(job ranks)
  execute_process(COMMAND ${MPIRUN} ${ranks} ${PROGRAM} ${ARGN} OUTPUT_VARIABLE out
                  ERROR_VARIABLE err RESULT_VARIABLE status)
endmacro()

set(text ${FOLDER}/text)
file(WRITE ${text} "")
foreach(i RANGE 99)
  string(RANDOM LENGTH 64 ALPHABET "abcdefgh .\n" RANDOM_SEED ${i} words)
  string(REPEAT "${words} the cat " 4 words)
  file(APPEND ${text} "${words}")
endforeach()
set(small --text ${text} --arms off,eliminate+balance --steps 2 --hidden 32 --experts 16
          --expert-hidden 16)

# Each entry: ranks, and the tokens of each.
foreach(case IN ITEMS 1:512 2:256,256 4:128,128,128,128 4:64,0,320,128)
  string(REGEX MATCH "^[0-9]+" ranks ${case})
  string(REGEX REPLACE "^[0-9]+:" "" shares ${case})
  job(${ranks} ${small} --shares ${shares})
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${case} ended with ${status}: ${err}")
  endif()
  string(REGEX MATCHALL "[^\n]*, step 1: [^\n]*" first "${out}")
  list(LENGTH first arms)
  if(NOT arms EQUAL 2)
    message(FATAL_ERROR "${case} printed\n${out}")
  endif()
  if(DEFINED want AND NOT first STREQUAL want)
    message(SEND_ERROR "${case} printed\n${first}\nand one rank\n${want}")
  endif()
  set(want "${first}")
endforeach()

# refuses(<ranks> <part of the message> [<argument>...])
function(refuses ranks text)
  job("${ranks}" ${ARGN})
  string(REGEX MATCHALL "expert_parallel: [^\n]*\n" lines "${err}")
  list(LENGTH lines count)
  string(FIND "${lines}" "${text}" place)
  if(status EQUAL 0 OR NOT count EQUAL 1 OR place LESS 0 OR NOT out STREQUAL "")
    message(SEND_ERROR "${ranks} ranks, ${ARGN}: status ${status}, printed '${out}' and '${err}', "
                       "which should have one line with '${text}'")
  endif()
endfunction()

refuses(2 "no file or folder ${FOLDER}/missing" --text ${FOLDER}/missing)
refuses(3 "64 experts do not divide evenly among 3 ranks" --steps 1)
refuses(2 "--shares has 1 numbers" --shares 512)
refuses(2 "--steps" --steps 0)
# In the middle of a step, while the others wait.
refuses(4 "rank 2: failed in step 1" ${small} --fail-on-rank 2)
refuses(2 "the loss is not finite" ${small} --weight-scale 1e3 --learning-rate 10 --steps 50)
# The same without a job.
set(MPIRUN "")
refuses("" "the text has 0 bytes" --text /dev/null)
refuses("" "--top-k is 9, but there are only 8 experts" --experts 8 --top-k 9)
refuses("" "--tokens is 100: give a multiple of 64" --tokens 100)
refuses("" "unknown arm 'on'" --arms on)
refuses("" "only train_moe has +z" --arms off+z)
refuses("" "--sparse" --sparse)
refuses("" "--fail-on-rank is 1" --fail-on-rank 1)
