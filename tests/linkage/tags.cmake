# SPDX-License-Identifier: MIT
# cmake -DCXX=<compiler> -DINCLUDE=<folder> -DX86=<bool> -DSCRATCH=<folder> -P tags.cmake
#
# Which builds share names, and so bodies. Each line below is a set of flags.
cmake_policy(VERSION 3.21)

function(get_tag result)
  execute_process(
    COMMAND "${CXX}" -std=c++17 ${ARGN} -I "${INCLUDE}" -E -P "${CMAKE_CURRENT_LIST_DIR}/tag.cpp"
    OUTPUT_VARIABLE lines OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCH "[^\n]+$" tag "${lines}")
  if(NOT tag MATCHES "^v[0-9A-Za-z_]+$")
    message(FATAL_ERROR "no name for a namespace with ${ARGN}: '${tag}'")
  endif()
  set(${result} "${tag}" PARENT_SCOPE)
endfunction()

get_tag(baseline)

# Bits do not depend on these, nor do the machines that run them.
foreach(flags IN ITEMS -O0 -O3 -ffp-contract=off -ffp-contract=fast -fno-math-errno -g -std=c++20)
  get_tag(tag ${flags})
  if(NOT tag STREQUAL baseline)
    message(SEND_ERROR "${flags}: ${tag} instead of ${baseline}")
  endif()
endforeach()

# Each differs from the baseline and from all others.
set(different -Ofast -ffinite-math-only -fno-exceptions -DGATEPRO_NO_VECTOR_EXTENSIONS)
if(X86)
  list(APPEND different -msse3 -msse4a -mtbm -mssse3 -msse4.1 -msse4.2 -mpopcnt -mlzcnt -mbmi -mbmi2 -mmovbe -mavx
       "-mavx -mfma" "-mavx -mf16c" -mavx2 "-mavx2 -mfma" -mavx512f "-mavx512f -mavx512bw"
       "-mavx512f -mavx512vl" "-mavx512f -mavx512dq" "-mavx512f -mavx512cd")
endif()
set(tags ${baseline})
foreach(flags IN LISTS different)
  separate_arguments(flags)
  get_tag(tag ${flags})
  if(tag IN_LIST tags)
    message(SEND_ERROR "${flags}: ${tag} is another build's name")
  endif()
  list(APPEND tags ${tag})
endforeach()

# Two versions in one process, each inside a plugin.
file(READ "${INCLUDE}/gatepro/core/version.hpp" version)
foreach(part IN ITEMS MAJOR MINOR PATCH)
  string(REGEX REPLACE "(_VERSION_${part}) [0-9]+" "\\1 99" other "${version}")
  file(WRITE "${SCRATCH}/gatepro/core/version.hpp" "${other}")
  get_tag(tag -I "${SCRATCH}")
  if(tag IN_LIST tags)
    message(SEND_ERROR "another ${part} version shares the name ${tag}")
  endif()
endforeach()
