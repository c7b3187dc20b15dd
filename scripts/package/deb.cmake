# SPDX-License-Identifier: MIT
# What `cpack` makes of an install: a .deb that fits every architecture. Builds are no source.
set(CPACK_GENERATOR DEB)
set(CPACK_SOURCE_GENERATOR TGZ)
set(CPACK_SOURCE_PACKAGE_FILE_NAME gatepro-${PROJECT_VERSION})
set(CPACK_SOURCE_IGNORE_FILES /build/ "/\\.git/")
set(CPACK_PACKAGE_NAME libgatepro-dev)
set(CPACK_PACKAGE_CONTACT "The gatepro authors")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libeigen3-dev (>= 3.4)")
include(CPack)
