/*
 * Edits a video:
 *
 *     edit BUNDLE INPUT OUTPUT INSTRUCTION
 *     edit editverse_rt/bundles/nano in.mp4 out.mp4 "<video1> Make it night"
 *
 * The function edit() below has the five steps of every program that uses the library: open a bundle, describe the
 * input, describe the request, run it, and keep the result.
 *
 * A library that was built without FFmpeg reads and writes no files. For it, INPUT and OUTPUT may be uncompressed
 * pictures, one after the other in a file that ends in .ppm:
 *
 *     ffmpeg -i in.mp4 -f image2pipe -c:v ppm in.ppm
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "editverse_rt.h"

/* Frames in memory, and their size. */
typedef struct {
  unsigned char* pixels; /* RGB, 3 bytes a pixel; from malloc() */
  int num_frames;
  int width;
  int height;
} clip;

static int is_ppm(const char* path) {
  const size_t length = strlen(path);
  return length > 4 && strcmp(path + length - 4, ".ppm") == 0;
}

/* Reads every picture of a PPM file. Returns 0 if that is not a single one. */
static int read_ppm(const char* path, clip* frames) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    return 0;
  }
  int width, height;
  while (fscanf(file, "P6 %5d %5d 255", &width, &height) == 2 && fgetc(file) != EOF) {
    if (width < 1 || height < 1) break;
    if (frames->num_frames > 0 && (width != frames->width || height != frames->height)) break;
    const size_t picture_bytes = (size_t)width * (size_t)height * 3;
    const size_t offset = (size_t)frames->num_frames * picture_bytes;
    unsigned char* larger = realloc(frames->pixels, offset + picture_bytes);
    if (larger == NULL) break;
    frames->pixels = larger;
    frames->width = width;
    frames->height = height;
    if (fread(frames->pixels + offset, 1, picture_bytes, file) != picture_bytes) break;
    ++frames->num_frames;
  }
  fclose(file);
  return frames->num_frames > 0;
}

/* Writes the frames of a result as a PPM file. Returns 0 if that fails. */
static int write_ppm(const char* path, const ev_frames* frames) {
  FILE* file = fopen(path, "wb");
  if (file == NULL) {
    perror(path);
    return 0;
  }
  const size_t picture_bytes = frames->num_bytes / (size_t)frames->size.num_frames;
  for (int i = 0; i < frames->size.num_frames; ++i) {
    fprintf(file, "P6\n%d %d\n255\n", frames->size.width_px, frames->size.height_px);
    fwrite(frames->data + (size_t)i * picture_bytes, 1, picture_bytes, file);
  }
  const int failed = ferror(file);
  if (fclose(file) != 0 || failed) {
    perror(path);
    return 0;
  }
  return 1;
}

/* Called after each step of the solver. A callback can also stop the request, by returning another value than 0. */
static int show_step(void* user_data, const ev_step* step) {
  (void)user_data;
  fprintf(stderr, "\rstep %d of %d", step->step + 1, step->num_inference_steps);
  return 0;
}

/* Says what went wrong, if something did: functions return EV_OK or the code of an error, whose text is kept. */
static int succeeded(int code) {
  if (code != EV_OK) fprintf(stderr, "\n%s: %s\n", ev_error_name(code), ev_last_error());
  return code == EV_OK;
}

/* Saves what a request gave. Returns 0 if that fails. */
static int save(const ev_result* result, const char* path) {
  if (!is_ppm(path)) return succeeded(ev_result_save(result, path));
  ev_frames frames;
  ev_frames_init(&frames, sizeof frames);
  return succeeded(ev_result_frames(result, &frames)) && write_ppm(path, &frames);
}

/* Opens the bundle, edits, and saves. Returns 0 if one of these fails. Whatever happens, *pipeline and *result are
 * given back by the caller. */
static int edit(char** arguments, const clip* frames, ev_pipeline** pipeline, ev_result** result) {
  /* 1. Open a bundle. Every struct is prepared by its ev_*_init function, which sets all fields to their defaults. */
  ev_options options;
  ev_options_init(&options, sizeof options);
  options.bundle = arguments[1];
  options.release_graphs = 1; /* This program runs one request, so a graph is not needed again after its last run. */
  if (!succeeded(ev_open(pipeline, &options))) return 0;

  /* 2. Describe the input. The instruction mentions it by its tag, <video1>. */
  ev_input input;
  ev_input_init(&input, sizeof input);
  input.name = "video1";
  if (frames->num_frames > 0) {
    input.frames = frames->pixels;
    input.num_bytes = (size_t)frames->num_frames * (size_t)frames->width * (size_t)frames->height * 3;
    input.num_frames = frames->num_frames;
    input.width_px = frames->width;
    input.height_px = frames->height;
  } else {
    input.path = arguments[2];
  }

  /* 3. Describe the request. The size, the length and the rate of the result follow from the input. */
  ev_request request;
  ev_request_init(&request, sizeof request);
  request.prompt = arguments[4];
  request.inputs = &input;
  request.num_inputs = 1;
  request.callback = show_step;

  /* 4. Run it. */
  if (!succeeded(ev_run(*pipeline, &request, result))) return 0;

  /* 5. Keep the result, and say what the user should know: that the input was cut, for example. */
  for (size_t i = 0; ev_result_notice(*result, i) != NULL; ++i) {
    fprintf(stderr, "\n%s", ev_result_notice(*result, i));
  }
  fprintf(stderr, "\n");
  return save(*result, arguments[3]);
}

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: edit BUNDLE INPUT OUTPUT INSTRUCTION\n");
    return 2;
  }
  clip frames = {NULL, 0, 0, 0};
  if (is_ppm(argv[2]) && !read_ppm(argv[2], &frames)) {
    fprintf(stderr, "%s: found no pictures; expected PPM with 255 levels\n", argv[2]);
    free(frames.pixels);
    return 1;
  }

  ev_pipeline* pipeline = NULL;
  ev_result* result = NULL;
  const int done = edit(argv, &frames, &pipeline, &result);

  /* Giving back a pipeline or a result that was never there is allowed. */
  ev_result_free(&result);
  ev_close(&pipeline);
  free(frames.pixels);
  return done ? 0 : 1;
}
