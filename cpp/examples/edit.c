/* Edits a video: edit BUNDLE IN OUT INSTRUCTION, with <video1> in the instruction. IN, OUT: videos, or PPM pictures
 * in a row for a library without FFmpeg (`ffmpeg -i in.mp4 -f image2pipe -c:v ppm in.ppm`; `ffmpeg -i out.ppm`). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "editverse_rt.h"

static int show_step(void* user_data, const ev_step* step) {
  (void)user_data;
  fprintf(stderr, "\rstep %d of %d", step->step + 1, step->num_inference_steps);
  return 0; /* go on */
}

/* Appends every picture of a PPM stream to *pixels; returns their number, 0 if there is none. */
static int read_ppm(const char* path, unsigned char** pixels, int* width, int* height) {
  FILE* file = fopen(path, "rb");
  int count = 0, w, h;
  while (file && fscanf(file, "P6 %5d %5d 255", &w, &h) == 2 && fgetc(file) != EOF && w > 0 && h > 0) {
    size_t size = (size_t)w * (size_t)h * 3, begin = (size_t)count * size;
    unsigned char* more = (count && (w != *width || h != *height)) ? NULL : realloc(*pixels, begin + size);
    if (!more) break;
    *pixels = more, *width = w, *height = h;
    if (fread(more + begin, 1, size, file) != size) break;
    ++count;
  }
  if (file) fclose(file);
  return count;
}

int main(int argc, char** argv) {
  if (argc != 5) return fprintf(stderr, "usage: edit BUNDLE IN OUT INSTRUCTION\n"), 2;
  unsigned char* pixels = NULL;
  ev_options options;
  ev_input video;
  ev_request request;
  ev_frames frames;
  ev_options_init(&options, sizeof options), ev_input_init(&video, sizeof video);
  ev_request_init(&request, sizeof request), ev_frames_init(&frames, sizeof frames);
  options.bundle = argv[1], options.release_graphs = 1, video.name = "video1"; /* there is one request only */
  video.num_frames = read_ppm(argv[2], &pixels, &video.width_px, &video.height_px);
  video.num_bytes = (size_t)video.num_frames * (size_t)video.width_px * (size_t)video.height_px * 3;
  if (video.num_frames)
    video.frames = pixels;
  else
    video.path = argv[2];
  request.prompt = argv[4], request.inputs = &video, request.num_inputs = 1, request.callback = show_step;
  ev_pipeline* pipeline = NULL;
  ev_result* result = NULL;
  const int is_ppm = strlen(argv[3]) > 4 && !strcmp(argv[3] + strlen(argv[3]) - 4, ".ppm");
  int failed = ev_open(&pipeline, &options) || ev_run(pipeline, &request, &result) ||
               (is_ppm ? ev_result_frames(result, &frames) : ev_result_save(result, argv[3]));
  if (failed) fprintf(stderr, "\n%s\n", ev_last_error());
  for (size_t i = 0; ev_result_notice(result, i); ++i) fprintf(stderr, "\n%s", ev_result_notice(result, i));
  FILE* out = failed || !is_ppm ? NULL : fopen(argv[3], "wb");
  for (size_t n = (size_t)frames.size.num_frames, size = n ? frames.num_bytes / n : 0, i = 0; out && i < n; ++i) {
    fprintf(out, "P6\n%d %d\n255\n", frames.size.width_px, frames.size.height_px);
    fwrite(frames.data + i * size, 1, size, out);
  }
  if (!failed && is_ppm && (!out || ferror(out) | fclose(out))) perror(argv[3]), failed = 1;
  ev_result_free(&result), ev_close(&pipeline), free(pixels);
  return failed ? 1 : 0;
}
