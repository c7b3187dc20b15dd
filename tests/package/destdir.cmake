# SPDX-License-Identifier: MIT
# Installs BUILD below ROOT, for /usr.
include(${CMAKE_CURRENT_LIST_DIR}/same_files.cmake)
file(REMOVE_RECURSE ${ROOT})
set(ENV{DESTDIR} ${ROOT})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix /usr COMMAND_ERROR_IS_FATAL ANY)
gatepro_expect_same_files(${ROOT} ${USUAL})
