/*
 * Edits a whole video, however long it is, and writes its frames as they are done:
 *
 *     edit_whole BUNDLE INPUT INSTRUCTION > out.ppm
 *     edit_whole editverse_rt/bundles/nano in.mp4 "<video1> Make it night" |
 *         ffmpeg -f image2pipe -framerate 24 -c:v ppm -i - out.mp4
 *
 * A bundle edits clips of a limited length. A longer video is read and edited window by window: each window begins with
 * the last frames of the one before, and a cut in the video begins a window of its own. This program keeps one window
 * in memory, not the video. edit.c says what the functions do that are not explained here.
 */
#include <stdio.h>

#include "editverse_rt.h"

/* Called with the frames that each window adds to the result; each frame comes once, in order. They are written as
 * pictures, one after the other. Another value than 0 stops the request. */
static int write_frames(void* user_data, const ev_window* window) {
  FILE* file = user_data;
  const size_t picture_bytes = window->num_bytes / (size_t)window->num_frames;
  for (int i = 0; i < window->num_frames; ++i) {
    fprintf(file, "P6\n%d %d\n255\n", window->width_px, window->height_px);
    fwrite(window->frames + (size_t)i * picture_bytes, 1, picture_bytes, file);
  }
  fprintf(stderr, "%lld frames are done\n", (long long)window->begin + window->num_frames);
  return ferror(file) ? 1 : 0;
}

static int succeeded(int code) {
  if (code != EV_OK) fprintf(stderr, "%s: %s\n", ev_error_name(code), ev_last_error());
  return code == EV_OK;
}

static int edit(char** arguments, ev_pipeline** pipeline, ev_result** result) {
  ev_options options;
  ev_options_init(&options, sizeof options);
  options.bundle = arguments[1];
  if (!succeeded(ev_open(pipeline, &options))) return 0;

  ev_input input;
  ev_input_init(&input, sizeof input);
  input.name = "video1";
  input.path = arguments[2];

  /* Two fields make the difference: the whole video is edited, and its frames go to write_frames. */
  ev_request request;
  ev_request_init(&request, sizeof request);
  request.prompt = arguments[3];
  request.inputs = &input;
  request.num_inputs = 1;
  request.length = "whole";
  request.window_callback = write_frames;
  request.user_data = stdout;

  /* What is asked for, before it begins: 0 where the video does not say how long it is. */
  ev_request_info info;
  ev_request_info_init(&info, sizeof info);
  if (!succeeded(ev_describe_request(*pipeline, &request, &info, NULL))) return 0;
  fprintf(stderr, "%d frames in %d windows or more\n", info.result.num_frames, info.num_windows);

  if (!succeeded(ev_run(*pipeline, &request, result))) return 0;

  /* The result has no frames here. It says their rate, and what the user should know. */
  ev_frames frames;
  ev_frames_init(&frames, sizeof frames);
  if (!succeeded(ev_result_frames(*result, &frames))) return 0;
  fprintf(stderr, "%d frames, %g a second\n", frames.size.num_frames, frames.fps);
  for (size_t i = 0; ev_result_notice(*result, i) != NULL; ++i) {
    fprintf(stderr, "%s\n", ev_result_notice(*result, i));
  }
  return fflush(stdout) == 0;
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: edit_whole BUNDLE INPUT INSTRUCTION > OUTPUT.ppm\n");
    return 2;
  }
  ev_pipeline* pipeline = NULL;
  ev_result* result = NULL;
  const int done = edit(argv, &pipeline, &result);
  ev_result_free(&result);
  ev_close(&pipeline);
  return done ? 0 : 1;
}
