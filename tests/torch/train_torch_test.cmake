# SPDX-License-Identifier: MIT
# train_torch from outside: what it prints, checkpoints, and its answers to bad input.
#   cmake -DPROGRAM=<train_torch> -DFOLDER=<for files> -P train_torch_test.cmake

# run(<exit code> <option>...) sets `out` and `err`.
function(run code)
  execute_process(COMMAND ${PROGRAM} ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE out
                  ERROR_VARIABLE err TIMEOUT 60)
  if(NOT result EQUAL code)
    message(FATAL_ERROR "train_torch ${ARGN}: exit code ${result}, not ${code}\n${out}${err}")
  endif()
  set(out "${out}" PARENT_SCOPE)
  set(err "${err}" PARENT_SCOPE)
endfunction()

# refuse(<regex> <option>...): one line about it, and exit code 2.
function(refuse regex)
  run(2 ${ARGN})
  if(NOT err MATCHES "^train_torch: [^\n]*${regex}[^\n]*\n$")
    message(FATAL_ERROR "train_torch ${ARGN}: expected one line about '${regex}', got\n${err}")
  endif()
endfunction()

# line(<variable> <step>): what `out` says of the step.
function(line variable step)
  string(REGEX MATCH "step +${step} [^\n]*\n" line "${out}")
  set(${variable} "${line}" PARENT_SCOPE)
endfunction()

function(expect_equal one other what)
  if(NOT one STREQUAL other OR one STREQUAL "")
    message(FATAL_ERROR "${what}:\n${one}${other}")
  endif()
endfunction()

file(MAKE_DIRECTORY ${FOLDER})
set(state ${FOLDER}/state.pt)

# It learns, and competition keeps partners apart.
run(0 --mode off --steps 30 --print-every 10)
line(off_at_20 20)
line(off_at_30 30)
if(NOT off_at_30 MATCHES "validation 2\\.[0-9]+ .*competition off")
  message(FATAL_ERROR "30 steps should bring the loss below 3 nats:\n${out}")
endif()
run(0 --steps 30)
line(on_at_30 30)
if(NOT on_at_30 MATCHES "together 0\\.0.*competition eliminate")
  message(FATAL_ERROR "partners are chosen together in spite of elimination:\n${out}")
endif()

# Switched on at step 20, the first 20 are those without competition.
run(0 --on-at 20 --steps 30 --print-every 10)
line(late_at_20 20)
line(late_at_30 30)
expect_equal("${late_at_20}" "${off_at_20}" "competition acts before --on-at")
if(NOT late_at_30 MATCHES "together 0\\.0.*competition eliminate")
  message(FATAL_ERROR "--on-at switches nothing on:\n${out}")
endif()

# Saved, loaded and gone on with, it is the same training, partners included.
run(0 --steps 13 --refresh-every 6 --save ${state})
run(0 --steps 20 --refresh-every 6 --load ${state})
line(resumed 20)
run(0 --steps 20 --refresh-every 6)
line(whole 20)
expect_equal("${resumed}" "${whole}" "a checkpoint changes the training")

run(0 --help)
refuse("no file or folder /does/not/exist" --text /does/not/exist)
file(WRITE ${FOLDER}/short "too short")
refuse("the text has 9 bytes" --text ${FOLDER}/short)
refuse("--bogus" --bogus)
refuse("--mode: some" --mode some)
refuse("--lambda: Value -1" --lambda -1)
refuse("--steps" --steps none)
refuse("an option is nan" --balance-coeff nan)
refuse("no file /does/not/exist to load" --load /does/not/exist)
refuse("cannot load .*short" --load ${FOLDER}/short)
refuse("cannot save /does/not/exist" --steps 1 --save /does/not/exist)
