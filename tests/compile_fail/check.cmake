# SPDX-License-Identifier: MIT
set(compile ${COMPILE} ${SOURCE})

execute_process(COMMAND ${compile} RESULT_VARIABLE result ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "must compile without ${FAULT}:\n${output}")
endif()

execute_process(COMMAND ${compile} -D${FAULT} RESULT_VARIABLE result ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "must not compile with ${FAULT}")
endif()
if(NOT output MATCHES "${EXPECTED}")
  message(FATAL_ERROR "expected a message that matches '${EXPECTED}', got:\n${output}")
endif()
