# SPDX-License-Identifier: MIT
# gatepro_expect_same_files(<root> <usual>): below <root> stand the files of the usual install, with
# their bytes, as /usr/..., and no others.
function(gatepro_expect_same_files root usual)
  file(GLOB_RECURSE staged RELATIVE ${root} ${root}/*)
  file(GLOB_RECURSE expected RELATIVE ${usual} ${usual}/*)
  list(TRANSFORM expected PREPEND usr/)
  if(expected STREQUAL "" OR NOT staged STREQUAL expected)
    message(FATAL_ERROR "${root} holds\n${staged}\nand not\n${expected}")
  endif()
  foreach(name IN LISTS staged)
    string(REGEX REPLACE "^usr/" "" plain ${name})
    file(SHA256 ${root}/${name} ours)
    file(SHA256 ${usual}/${plain} theirs)
    if(NOT ours STREQUAL theirs)
      message(FATAL_ERROR "${root}/${name} is not the file of the usual install")
    endif()
  endforeach()
endfunction()
