/* The part of TensorFlow Lite's C API that samples/denoise.c calls, declared as tensorflow/lite/c/c_api.h does, with a
 * model that returns its image: enough to compile and run the sample where no such library is installed. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef enum { kTfLiteOk = 0, kTfLiteError = 1 } TfLiteStatus;
typedef struct TfLiteModel { char path[256]; } TfLiteModel;
typedef struct TfLiteInterpreterOptions { int32_t threads; } TfLiteInterpreterOptions;
typedef struct TfLiteTensor { int32_t dims; size_t size; unsigned char data[1 << 20]; } TfLiteTensor;
typedef struct TfLiteInterpreter { int allocated; } TfLiteInterpreter;

static TfLiteModel stub_model;
static TfLiteInterpreterOptions stub_options;
static TfLiteInterpreter stub_interpreter;
static TfLiteTensor stub_image = {4, STUB_BYTES, {0}}, stub_sigma = {1, 1, {0}};

static TfLiteModel *TfLiteModelCreateFromFile(const char *path) {
  FILE *file = fopen(path, "rb");
  if (file) fclose(file);
  return file ? &stub_model : NULL;
}
static void TfLiteModelDelete(TfLiteModel *model) { (void)model; }
static TfLiteInterpreterOptions *TfLiteInterpreterOptionsCreate(void) { return &stub_options; }
static void TfLiteInterpreterOptionsSetNumThreads(TfLiteInterpreterOptions *options, int32_t threads) {
  options->threads = threads;
}
static void TfLiteInterpreterOptionsDelete(TfLiteInterpreterOptions *options) { (void)options; }
static TfLiteInterpreter *TfLiteInterpreterCreate(const TfLiteModel *model, const TfLiteInterpreterOptions *options) {
  return model && options ? &stub_interpreter : NULL;
}
static TfLiteStatus TfLiteInterpreterAllocateTensors(TfLiteInterpreter *interpreter) {
  interpreter->allocated = 1;
  return kTfLiteOk;
}
static int32_t TfLiteInterpreterGetInputTensorCount(const TfLiteInterpreter *interpreter) {
  return interpreter->allocated ? 2 : 0;
}
/* Sigma first: the order of a file's inputs is not promised. */
static TfLiteTensor *TfLiteInterpreterGetInputTensor(const TfLiteInterpreter *interpreter, int32_t index) {
  (void)interpreter;
  return index == 0 ? &stub_sigma : &stub_image;
}
static int32_t TfLiteTensorNumDims(const TfLiteTensor *tensor) { return tensor->dims; }
static TfLiteStatus TfLiteTensorCopyFromBuffer(TfLiteTensor *tensor, const void *data, size_t size) {
  if (size != tensor->size) return kTfLiteError;
  memcpy(tensor->data, data, size);
  return kTfLiteOk;
}
static TfLiteStatus TfLiteInterpreterInvoke(TfLiteInterpreter *interpreter) {
  (void)interpreter;
  fprintf(stderr, "image[0] %d sigma %d\n", (signed char)stub_image.data[0], (signed char)stub_sigma.data[0]);
  return kTfLiteOk;
}
static const TfLiteTensor *TfLiteInterpreterGetOutputTensor(const TfLiteInterpreter *interpreter, int32_t index) {
  (void)interpreter;
  return index == 0 ? &stub_image : NULL;
}
static TfLiteStatus TfLiteTensorCopyToBuffer(const TfLiteTensor *tensor, void *data, size_t size) {
  if (size != tensor->size) return kTfLiteError;
  memcpy(data, tensor->data, size);
  return kTfLiteOk;
}
static void TfLiteInterpreterDelete(TfLiteInterpreter *interpreter) { (void)interpreter; }
