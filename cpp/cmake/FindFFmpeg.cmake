# FFmpeg's libavformat, libavcodec, libswscale and libavutil. Give FFmpeg_ROOT, or a prefix in CMAKE_PREFIX_PATH.
# Makes the target FFmpeg::ffmpeg. Only shared libraries are taken, unless FFmpeg_USE_STATIC_LIBS is on: static ones are
# often built without -fPIC, and do not say what they need in turn.
find_path(FFmpeg_INCLUDE_DIR libavformat/avformat.h)
set(FFmpeg_needed FFmpeg_INCLUDE_DIR)
set(FFmpeg_saved_suffixes ${CMAKE_FIND_LIBRARY_SUFFIXES})
if(NOT FFmpeg_USE_STATIC_LIBS)
  set(CMAKE_FIND_LIBRARY_SUFFIXES ${CMAKE_SHARED_LIBRARY_SUFFIX})
endif()
foreach(part avformat avcodec swscale avutil)
  find_library(FFmpeg_${part}_LIBRARY ${part})
  list(APPEND FFmpeg_needed FFmpeg_${part}_LIBRARY)
endforeach()
set(CMAKE_FIND_LIBRARY_SUFFIXES ${FFmpeg_saved_suffixes})
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(FFmpeg REQUIRED_VARS ${FFmpeg_needed}
  REASON_FAILURE_MESSAGE "Install FFmpeg's shared libraries with their headers, or fetch them with cpp/tools/fetch_deps.sh")
if(FFmpeg_FOUND AND NOT TARGET FFmpeg::ffmpeg)
  add_library(FFmpeg::ffmpeg INTERFACE IMPORTED)
  get_filename_component(FFmpeg_library_dir ${FFmpeg_avutil_LIBRARY} DIRECTORY)
  set_target_properties(FFmpeg::ffmpeg PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${FFmpeg_INCLUDE_DIR}
    INTERFACE_LINK_LIBRARIES
      "${FFmpeg_avformat_LIBRARY};${FFmpeg_avcodec_LIBRARY};${FFmpeg_swscale_LIBRARY};${FFmpeg_avutil_LIBRARY}"
    # The libraries that these load in turn may lie beside them and nowhere else.
    INTERFACE_LINK_OPTIONS "LINKER:-rpath-link,${FFmpeg_library_dir}")
endif()
mark_as_advanced(${FFmpeg_needed})
