/* Edits a clip: edit BUNDLE IN OUT.ppm INSTRUCTION, with <video1> in the instruction.
 * IN is a file that FFmpeg reads, if the library was built with it, or PPM pictures in a row, which
 * `ffmpeg -i in.mp4 -f image2pipe -c:v ppm in.ppm` writes; OUT.ppm is such a row, for `ffmpeg -i out.ppm out.mp4`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "editverse_rt.h"

static int show_step(void *user_data, const ev_step *step) {
    (void)user_data;
    fprintf(stderr, "\rstep %d of %d", step->step + 1, step->num_inference_steps);
    return 0; /* go on */
}

/* Appends every picture of a PPM stream to *pixels; returns their number, 0 if there is none. */
static int read_ppm(const char *path, unsigned char **pixels, int *width, int *height) {
    FILE *file = fopen(path, "rb");
    int count = 0, w, h;
    while (file && fscanf(file, "P6 %5d %5d 255", &w, &h) == 2 && fgetc(file) != EOF && w > 0 && h > 0) {
        size_t size = (size_t)w * (size_t)h * 3;
        unsigned char *more = (count && (w != *width || h != *height)) ? NULL : realloc(*pixels, (count + 1) * size);
        if (!more) break;
        *pixels = more, *width = w, *height = h;
        if (fread(more + count * size, 1, size, file) != size) break;
        ++count;
    }
    if (file) fclose(file);
    return count;
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "usage: edit BUNDLE IN OUT.ppm INSTRUCTION\n"), 2;
    unsigned char *pixels = NULL;
    ev_options options;
    ev_options_init(&options);
    options.bundle = argv[1];
    ev_input video;
    ev_input_init(&video);
    video.name = "video1";
    video.num_frames = read_ppm(argv[2], &pixels, &video.width_px, &video.height_px);
    video.frames = video.num_frames ? pixels : NULL;
    video.num_bytes = (size_t)video.num_frames * (size_t)video.width_px * (size_t)video.height_px * 3;
    if (!video.num_frames) video.path = argv[2];
    ev_request request;
    ev_request_init(&request);
    request.prompt = argv[4], request.inputs = &video, request.num_inputs = 1, request.callback = show_step;

    ev_pipeline *pipeline = NULL;
    ev_result *result = NULL;
    ev_frames frames;
    ev_frames_init(&frames);
    FILE *out = NULL;
    int code = ev_open(&pipeline, &options);
    if (code == EV_OK) code = ev_run(pipeline, &request, &result);
    if (code == EV_OK) code = ev_result_frames(result, &frames);
    if (code != EV_OK) fprintf(stderr, "\n%s: %s\n", ev_error_name(code), ev_last_error());
    for (size_t i = 0; ev_result_notice(result, i); ++i) fprintf(stderr, "\n%s", ev_result_notice(result, i));
    if (code == EV_OK && !(out = fopen(argv[3], "wb"))) perror(argv[3]), code = EV_ERROR_MEDIA;
    for (int i = 0; code == EV_OK && i < frames.size.num_frames; ++i) {
        size_t size = frames.num_bytes / (size_t)frames.size.num_frames;
        fprintf(out, "P6\n%d %d\n255\n", frames.size.width_px, frames.size.height_px);
        if (fwrite(frames.data + (size_t)i * size, 1, size, out) != size) perror(argv[3]), code = EV_ERROR_MEDIA;
    }
    if (out && fclose(out) != 0) perror(argv[3]), code = EV_ERROR_MEDIA;
    ev_result_free(&result);
    ev_close(&pipeline);
    free(pixels);
    return code == EV_OK ? 0 : 1;
}
