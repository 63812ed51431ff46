# What `cmake --install` lays down: the libraries, the headers, the package files of CMake and pkg-config.
include(CMakePackageConfigHelpers)

set(EDITVERSE_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/EditVerseRT)
install(TARGETS editverse_rt EXPORT EditVerseRTTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS editverse_rt_static EXPORT EditVerseRTStaticTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/editverse_rt.h include/editverse_rt.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
foreach(export EditVerseRTTargets EditVerseRTStaticTargets)
  install(EXPORT ${export} NAMESPACE EditVerseRT:: DESTINATION ${EDITVERSE_CMAKE_DIR})
endforeach()

configure_package_config_file(cmake/EditVerseRTConfig.cmake.in ${PROJECT_BINARY_DIR}/EditVerseRTConfig.cmake
  INSTALL_DESTINATION ${EDITVERSE_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/EditVerseRTConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/EditVerseRTConfig.cmake ${PROJECT_BINARY_DIR}/EditVerseRTConfigVersion.cmake
  cmake/FindSentencePiece.cmake cmake/FindFFmpeg.cmake
  DESTINATION ${EDITVERSE_CMAKE_DIR})

set(EDITVERSE_LINKS_PRIVATE "-lsentencepiece -lcrypto -lpthread -ldl -lstdc++ -lm")
if(EDITVERSE_FFMPEG)
  string(PREPEND EDITVERSE_LINKS_PRIVATE "-lavformat -lavcodec -lswscale -lavutil ")
endif()
configure_file(cmake/editverse_rt.pc.in ${PROJECT_BINARY_DIR}/editverse_rt.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/editverse_rt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
