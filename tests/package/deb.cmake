# SPDX-License-Identifier: MIT
# Makes a .deb of BUILD and unpacks it into ROOT.
include(${CMAKE_CURRENT_LIST_DIR}/same_files.cmake)
set(folder ${BUILD}/deb)
file(REMOVE_RECURSE ${ROOT} ${folder})
execute_process(COMMAND ${CPACK} --config ${BUILD}/CPackConfig.cmake -B ${folder}
                COMMAND_ERROR_IS_FATAL ANY)
set(package ${folder}/libgatepro-dev_${VERSION}_all.deb)
execute_process(COMMAND ${DPKG_DEB} --field ${package} Depends OUTPUT_VARIABLE depends
                COMMAND_ERROR_IS_FATAL ANY)
if(NOT depends STREQUAL "libeigen3-dev (>= 3.4)\n")
  message(FATAL_ERROR "${package} depends on: ${depends}")
endif()
execute_process(COMMAND ${DPKG_DEB} --extract ${package} ${ROOT} COMMAND_ERROR_IS_FATAL ANY)
gatepro_expect_same_files(${ROOT} ${USUAL})
