/*
 * editverse_rt.h: edit and generate images and videos with EditVerse bundles, from C and C++.
 *
 * The one binary interface of the library. editverse_rt.hpp wraps it for C++; docs/c_api.md lists it.
 *
 *     ev_options options;
 *     ev_options_init(&options, sizeof options);
 *     options.bundle = "bundles/nano";
 *     ev_pipeline *pipeline = NULL;
 *     if (ev_open(&pipeline, &options) != EV_OK) { fprintf(stderr, "%s\n", ev_last_error()); ... }
 *     ...ev_run(pipeline, &request, &result)...
 *     ev_close(&pipeline);
 *
 * Rules that hold everywhere:
 *
 * Errors. A function that returns int returns EV_OK (0) or a negative EV_ERROR_* code; ev_last_error() then
 *   has one line that says what was found, what was expected, and what to do, and ev_last_error_json() the
 *   same as data for programs. No input, however wrong, ends
 *   the process: a null pointer where none is allowed is EV_ERROR_ARGUMENT. On failure an output parameter
 *   is set to NULL, or left as it was where it is a struct.
 * Structs. Every struct that a caller fills begins with struct_size, which its ev_*_init function sets
 *   beside all defaults; call it first, with the struct's sizeof. New fields are added at the end only, and
 *   nothing is read or written beyond struct_size: a program that was compiled with an older header goes on
 *   working, and one compiled with a newer header is refused (EV_ERROR_ARGUMENT) only if it sets a field
 *   that the library does not know.
 * Ownership. What a caller passes stays the caller's and is read during the call only: nothing is kept after
 *   the function returns. What the library gives is freed by ev_close (pipelines) or ev_result_free
 *   (results); every other pointer that it gives belongs to the object it was asked of, and says until when.
 * Threads. Functions on different pipelines may run at once. ev_describe_request and ev_run on one pipeline take turns:
 *   a second thread waits until the first is done. ev_cancel and ev_close may be called from any thread at
 *   any time; a call on a pipeline that is closed returns EV_ERROR_ARGUMENT. A result may be read by several
 *   threads at once, until it is freed. None of the functions may be called in a signal handler.
 * Exit. A process may end, by exit() or by returning from main(), while other threads run requests. exit()
 *   then stops them first, waits until they have left the library (10 s at most), and goes on; those threads do
 *   not return to the caller. No output is left half-written. Only while the first ev_open of a process is under
 *   way in another thread this is not promised.
 * Environment. The first ev_open that uses ONNX Runtime sets ORT_DISABLE_TELEMETRY=1 for the process: ONNX
 *   Runtime would otherwise write a device id below the user's cache folder and send events to a host. The
 *   variable is left as it is where it is set already, whatever its value. setenv() is not safe beside getenv()
 *   in other threads: a program that has threads by then sets the variable itself before it starts them. A
 *   program that initialised ONNX Runtime itself before has to see to this itself.
 * Formats. Text is UTF-8, ended by a zero byte. Pixels are 8-bit RGB, three bytes each, rows from the top.
 */
#ifndef EDITVERSE_RT_H
#define EDITVERSE_RT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EV_API
#else
#define EV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define EV_VERSION_MAJOR 0
#define EV_VERSION_MINOR 1
#define EV_VERSION_PATCH 0

/* In a field that says so: what the bundle or the inputs say. */
#define EV_DEFAULT (-1)

/* What functions return. The names in the comments are the errors of the Python package. */
enum {
  EV_OK = 0,
  EV_ERROR_BUNDLE = -1,    /* BundleError: missing, incomplete, altered, or of a newer format */
  EV_ERROR_MEDIA = -2,     /* MediaError: frames or a file that cannot be read or written */
  EV_ERROR_REQUEST = -3,   /* RequestError: contradicts itself or exceeds what the bundle declares */
  EV_ERROR_BACKEND = -4,   /* BackendError: not available here, or cannot run a graph */
  EV_ERROR_CANCELLED = -5, /* RequestCancelled: by the callback or ev_cancel; the pipeline stays usable */
  EV_ERROR_ARGUMENT = -6,  /* TypeError: a null pointer, a wrong struct_size, a call from the callback */
  EV_ERROR_MEMORY = -7,    /* MemoryError: memory ran out; the pipeline stays usable */
  EV_ERROR_INTERNAL = -8   /* a bug of this library; the text says what is known */
};

/* A bundle, opened on a backend. */
typedef struct ev_pipeline ev_pipeline;

/* What a request gave: frames and notices. Does not depend on the pipeline, which may be closed before. */
typedef struct ev_result ev_result;

/* How a bundle is opened. */
typedef struct ev_options {
  size_t struct_size; /* set by ev_options_init */

  /* The folder of the bundle, which has a bundle.json. Required. */
  const char* bundle;

  /* "auto" (also NULL; the default), "ort-cpu", "ort-cuda", "tensorrt-rtx" or "tensorrt". A backend that is
   * named is used or refused with the reason; there is no falling back from it. */
  const char* backend;

  /* The shared library of ONNX Runtime, or NULL (the default): the one that the process has loaded
   * already, else libonnxruntime.so.1 from where the library was built to look and the system looks. */
  const char* onnxruntime;

  /* Threads of the CPU; EV_DEFAULT: one for each physical core. Results do not depend on it. */
  int32_t num_threads;

  /* Not 0: take TensorRT plans that were never verified on this GPU. 0, the default: refuse them, and say
   * which command verifies them. */
  int32_t allow_unverified;

  /* The shared library of TensorRT, or of TensorRT for RTX, or NULL (the default): libnvinfer.so or
   * libtensorrt_rtx.so, of the version that the library was built for, where the system looks. */
  const char* tensorrt;

  /* Not 0: give each graph back after its last run in a request, which then takes the memory of the largest
   * of them and not of all; the next request loads them again. For programs that run one request. 0, the
   * default: keep them. */
  int32_t release_graphs;

  /* The GPU's number; EV_DEFAULT: the first. A backend that cannot follow this or one of the options below
   * is not taken. */
  int32_t device;

  /* Not 0: "tensorrt" launches a call that repeats as one CUDA graph. 0, the default: kernel by kernel. */
  int32_t cuda_graphs;

  /* How many bytes of each plan's weights may lie on the GPU at once, at least 0, for plans that were built
   * with weight streaming; EV_DEFAULT: what TensorRT says that fits. */
  int64_t weight_budget_bytes;

  /* The library of the TensorRT plugin, for plans that were built with it; NULL, the default: none. */
  const char* plugin;
} ev_options;

/* One video or image of a request: frames in memory, or the path of a file. */
typedef struct ev_input {
  size_t struct_size; /* set by ev_input_init */

  /* The input's tag without its brackets: "video1", "image1" ... Required. */
  const char* name;

  /* A file, where ev_has_media() is 1; NULL (the default) where frames are given. */
  const char* path;

  /* The pixels, or NULL where a path is given. Pixel (x, y) of frame t begins at byte
   * t * frame_stride_bytes + y * row_stride_bytes + 3 * x. ev_describe_request does not read them and takes NULL. */
  const uint8_t* frames;

  /* Bytes that may be read at `frames`; fewer than the strides and sizes need is EV_ERROR_MEDIA. */
  size_t num_bytes;

  int32_t num_frames; /* an image has 1, the default */
  int32_t width_px;
  int32_t height_px;
  size_t row_stride_bytes;   /* 0, the default: rows follow one another */
  size_t frame_stride_bytes; /* 0, the default: frames follow one another */
} ev_input;

/* A solver step that is done, as the callback sees it. Belongs to the library, for the call only. */
typedef struct ev_step {
  size_t struct_size;
  int32_t step;                /* counted from 0 */
  int32_t num_inference_steps; /* of each window */
  double timestep;             /* from 0 (noise) to 1 (data), where the step began */
  int32_t window;              /* counted from 0 */
  int32_t num_windows;         /* of the request, if its video has one scene; 0 where that is not known */
} ev_step;

/* Called by ev_run in the thread that called it, after each solver step. `user_data` is the request's.
 * Returns 0 to go on, anything else to stop with EV_ERROR_CANCELLED. May call ev_cancel and ev_close; other
 * functions on the same pipeline return EV_ERROR_ARGUMENT. Should not throw: a C++ exception that leaves it
 * is caught and stops the request, and only its text is kept (editverse_rt.hpp carries the exception itself). */
typedef int (*ev_step_callback)(void* user_data, const ev_step* step);

/* The frames that a window of a request adds to its result: each frame comes once, in order. Belongs to the
 * library, for the call only. */
typedef struct ev_window {
  size_t struct_size;
  int32_t window;      /* counted from 0 */
  int32_t num_windows; /* of the request, if its video has one scene; 0 where that is not known */
  int64_t begin;       /* the number in the result of the first frame */

  /* num_frames frames without gaps between rows or frames: num_bytes bytes in all. */
  const uint8_t* frames;
  size_t num_bytes;
  int32_t num_frames;
  int32_t width_px;
  int32_t height_px;
} ev_window;

/* Called by ev_run in the thread that called it, after each window; most requests are one window. `user_data`,
 * what it returns, what it may call and what it may throw are as of ev_step_callback. */
typedef int (*ev_window_callback)(void* user_data, const ev_window* window);

/* What to make. */
typedef struct ev_request {
  size_t struct_size; /* set by ev_request_init */

  /* The instruction, which mentions each input once by its tag: "<video1> Make it night". Without any tag it gets
     those of all inputs in front. Required. */
  const char* prompt;

  /* num_inputs elements, each prepared by ev_input_init; NULL where there are none. */
  const ev_input* inputs;
  size_t num_inputs;

  /* The bundle's schedule by name; NULL (the default): the bundle's default. */
  const char* schedule;

  int32_t num_inference_steps; /* 1 to 10000; EV_DEFAULT: the schedule's */
  double guidance_scale;       /* 0 to 1000, 1 is none; EV_DEFAULT: the schedule's */
  int64_t seed;                /* at least 0, the default; the same seed gives the same bytes */

  /* Of the result, both or neither; EV_DEFAULT: what follows from the inputs. */
  int32_t width_px;
  int32_t height_px;

  /* Of the result; EV_DEFAULT: what follows from the inputs. With more than the bundle's limit the request is done
   * window by window, unless `length` is "cut". */
  int32_t num_frames;
  double fps;     /* of the result; EV_DEFAULT: the main video's, the bundle's for frames in memory */
  double start_s; /* where to begin in the videos, in seconds; 0, the default */

  /* Called after each step; NULL, the default: nothing is. */
  ev_step_callback callback;
  void* user_data;

  /* What the result should not show, for a bundle whose guidance takes one (its capabilities say so; others
   * refuse it); NULL, the default: the bundle's. */
  const char* negative_prompt;

  /* How far a source that is noised may change, above 0 to 1, for a bundle that begins with one (others refuse
   * it); EV_DEFAULT: 0.8. */
  double strength;

  /* "whole": a video of any length is edited, window by window, where the bundle can do that (others refuse it).
   * "cut": what one window holds. NULL, the default: "whole" where the bundle can do that. */
  const char* length;

  /* Called after each window with its frames; ev_run then keeps no frames of windows that are done, so that memory
   * does not grow with the length of a video, and the result has none. NULL, the default: the result has the
   * frames, and one that would not fit the machine's memory is refused. */
  ev_window_callback window_callback;
} ev_request;

/* Length and size of a clip. */
typedef struct ev_clip_size {
  int32_t num_frames;
  int32_t width_px;
  int32_t height_px;
} ev_clip_size;

/* What a request comes to, before anything is computed. */
typedef struct ev_request_info {
  size_t struct_size; /* set by ev_request_info_init */
  ev_clip_size result;
  double fps;
  int32_t num_inference_steps;
  int32_t num_tokens;      /* of the instruction, the end of sequence included */
  int64_t sequence_length; /* rows of the interleaved sequence that the transformer sees, in a window */
  int32_t num_windows;     /* in how many the request is done, if its video has one scene; 0 where that is not known,
                              and result.num_frames is 0 then */
} ev_request_info;

/* A clip in memory. */
typedef struct ev_frames {
  size_t struct_size; /* set by ev_frames_init */

  /* size.num_frames frames without gaps between rows or frames: num_bytes bytes in all. NULL and 0 where a
   * window_callback took the frames. */
  const uint8_t* data;
  size_t num_bytes;
  ev_clip_size size;
  double fps;

  /* Where frames are not evenly spaced, as in a result that follows a video with a variable frame rate:
   * size.num_frames + 1 numbers, when each frame begins, from 0 on, and when the last ends, in seconds; fps is
   * their average rate then. NULL where they are evenly spaced. */
  const double* times_s;
} ev_frames;

/* --- the library ---------------------------------------------------------------------------------------- */

/* Returns the version of the library, "0.1.0"; never NULL, valid for ever. Any thread. */
EV_API const char* ev_version(void);

/* Returns 1 if the library was built with FFmpeg, and so takes paths, resizes frames and saves results, else 0.
 * Any thread. */
EV_API int ev_has_media(void);

/* Returns the text of the last failure in the calling thread: one line, "" if there was none. Never NULL;
 * valid until the next failure in the same thread, or its end. */
EV_API const char* ev_last_error(void);

/* Returns the last failure in the calling thread as a JSON object of strings: code, which docs/errors.md lists
 * and which is stable; field, the wrong one by its name here, as "ev_request.seed", or by that in a file, or ""
 * for none; found, expected and hint, each of which may be ""; and message, the text of ev_last_error. "" if
 * there was no failure. Never NULL; valid until the next failure in the same thread, or its end. */
EV_API const char* ev_last_error_json(void);

/* Returns the name of a code, that of the Python error: EV_ERROR_BUNDLE is "BundleError", EV_OK "OK", a
 * number that is no code "unknown". Never NULL, valid for ever. Any thread. */
EV_API const char* ev_error_name(int code);

/* --- defaults ------------------------------------------------------------------------------------------- */

/* Each sets struct_size and every field to its default. struct_size: sizeof the struct, as the caller's header
 * has it. NULL is allowed, and nothing happens. Any thread. */
EV_API void ev_options_init(ev_options* options, size_t struct_size);
EV_API void ev_input_init(ev_input* input, size_t struct_size);
EV_API void ev_request_init(ev_request* request, size_t struct_size);
EV_API void ev_request_info_init(ev_request_info* info, size_t struct_size);
EV_API void ev_frames_init(ev_frames* frames, size_t struct_size);

/* --- pipelines ------------------------------------------------------------------------------------------ */

/* Verifies a bundle (format, every field, every file's sha256) and opens it on a backend. Graphs are loaded
 * when they are first run. options: not NULL. *pipeline: the new pipeline, to be given to ev_close; NULL on
 * failure. Returns EV_OK, EV_ERROR_BUNDLE, EV_ERROR_BACKEND, EV_ERROR_REQUEST (num_threads),
 * EV_ERROR_ARGUMENT, EV_ERROR_MEMORY. Any thread. */
EV_API int ev_open(ev_pipeline** pipeline, const ev_options* options);

/* Gives back what a pipeline holds, and sets *pipeline to NULL. NULL, a pointer to NULL, and a pipeline that is
 * closed already are allowed, and nothing happens. A request that runs on the pipeline in another thread, and
 * those that wait for their turn, are stopped as by ev_cancel and end with EV_ERROR_CANCELLED; ev_close waits
 * until they have. Called from the callback of a request on this pipeline it returns at once, the request ends
 * with EV_ERROR_CANCELLED, and the pipeline is given back when that ev_run returns. Any thread. */
EV_API void ev_close(ev_pipeline** pipeline);

/* Returns a JSON object: bundle, path, format_version, backend, backend_version, and passed_over, which has
 * the reason for each backend that "auto" would have preferred. Belongs to the pipeline, valid until
 * ev_close; NULL where pipeline is NULL or closed. Any thread. */
EV_API const char* ev_info(const ev_pipeline* pipeline);

/* --- requests ------------------------------------------------------------------------------------------- */

/* Says what a request comes to, without running a graph of the model; a number of steps other than the
 * schedule's own is computed by the schedule's graph. pipeline, request, info: not NULL. input_sizes:
 * NULL, or request->num_inputs elements, set to what each input is read as, in the order of the inputs;
 * without FFmpeg, frames of another width or height must be resized to it before ev_run. For a path,
 * numbers of frames are what the file says and the bundle allows; it may hold fewer. Of a request that is done
 * window by window they are those of its first window, and info->result has the whole. No callback is called. Returns
 * EV_OK, EV_ERROR_REQUEST, EV_ERROR_MEDIA, EV_ERROR_BACKEND, EV_ERROR_ARGUMENT, EV_ERROR_MEMORY. Waits while another
 * thread runs a request on this pipeline. */
EV_API int ev_describe_request(ev_pipeline* pipeline, const ev_request* request, ev_request_info* info,
                               ev_clip_size* input_sizes);

/* Runs a request to its end; a video longer than the bundle's limit is done window by window where
 * ev_request.length says so. pipeline, request, result: not NULL. *result: to be given to ev_result_free;
 * NULL on failure. Returns EV_OK, EV_ERROR_REQUEST, EV_ERROR_MEDIA, EV_ERROR_BACKEND, EV_ERROR_CANCELLED,
 * EV_ERROR_ARGUMENT, EV_ERROR_MEMORY; after any of them the pipeline can be used again. Waits while another
 * thread runs a request on this pipeline. EV_ERROR_CANCELLED also where ev_close stopped it. */
EV_API int ev_run(ev_pipeline* pipeline, const ev_request* request, ev_result** result);

/* Stops the request that runs on the pipeline now, within a graph too (with TensorRT after it): its ev_run
 * returns EV_ERROR_CANCELLED. Where none runs nothing happens, and the next one is not stopped. Returns at
 * once, before the request has ended. NULL is allowed. Any thread, and the callback. */
EV_API void ev_cancel(ev_pipeline* pipeline);

/* --- results -------------------------------------------------------------------------------------------- */

/* Describes the frames of a result. result, frames: not NULL. frames->data and frames->times_s belong to the
 * result, valid until ev_result_free. Returns EV_OK or EV_ERROR_ARGUMENT. Any thread. */
EV_API int ev_result_frames(const ev_result* result, ev_frames* frames);

/* Refuses the name of a file that ev_result_save could not write, before anything is computed: another type, a
 * folder in the way, a place where nothing can be written, a name that is too long there, a rate that the type
 * cannot hold. path: not NULL. fps: ev_request.fps, EV_DEFAULT where it is not given. Returns EV_OK,
 * EV_ERROR_MEDIA, EV_ERROR_ARGUMENT, EV_ERROR_MEMORY. Any thread. */
EV_API int ev_check_target(const char* path, double fps);

/* Writes a result to a file, whole or not at all: under another name, then renamed over what is there. The
 * suffix of path says how: .mp4, .mov, .mkv (H.264, 4:2:0; an odd side is padded by repeating its last line),
 * .webm (VP9); .png, .jpg, .webp of one frame; of more, pictures by a pattern as name_%04d.png, numbered from 1,
 * or none for PNG pictures in a folder that is new or empty. Videos keep uneven times, to 1/90,000 s in .mp4 and
 * .mov and to 1 ms in .mkv and .webm; a frame that is shorter than that is left out. Without sound. result, path: not
 * NULL. Returns EV_OK, EV_ERROR_MEDIA (another suffix, what the system refuses, a library without FFmpeg or an FFmpeg
 * without the encoder), EV_ERROR_ARGUMENT (also where a window_callback took the frames), EV_ERROR_MEMORY. Any thread.
 */
EV_API int ev_result_save(const ev_result* result, const char* path);

/* Returns line `index` (from 0) of what the user should know, as "took frames 0-16 of 40", or NULL beyond
 * the last one and where result is NULL. Belongs to the result, valid until ev_result_free. Any thread. */
EV_API const char* ev_result_notice(const ev_result* result, size_t index);

/* Frees a result, and sets *result to NULL. NULL, and a pointer to NULL, are allowed, and nothing happens. */
EV_API void ev_result_free(ev_result** result);

#ifdef __cplusplus
}
#endif

#endif /* EDITVERSE_RT_H */
