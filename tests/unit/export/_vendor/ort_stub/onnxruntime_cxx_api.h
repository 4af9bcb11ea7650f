// Stands in for ONNX Runtime's C++ header where the samples are compiled in tests: a "model" is a text of one line an
// input or output, "name file sizes...", and running it reads the files of the outputs.

#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#define ORTCHAR_T char
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
};
enum { ORT_LOGGING_LEVEL_WARNING, OrtArenaAllocator, OrtMemTypeDefault };

namespace Ort {

struct Known {
  std::string name, file;
  std::vector<std::int64_t> shape;
};
struct Env { Env(int, const char*) {} };
struct SessionOptions {};
struct RunOptions { explicit RunOptions(std::nullptr_t) {} };
struct AllocatorWithDefaultOptions {};
struct MemoryInfo { static MemoryInfo CreateCpu(int, int) { return {}; } };
struct Info {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> GetShape() const { return shape; }
  std::size_t GetElementCount() const {
    std::size_t count = 1;
    for (auto size : shape) count *= static_cast<std::size_t>(size);
    return count;
  }
};
struct Name {
  std::string text;
  const char* get() const { return text.c_str(); }
};
struct Value {
  Info info;
  std::vector<float> values;
  static Value CreateTensor(const MemoryInfo&, void*, std::size_t bytes, const std::int64_t* sizes, std::size_t axes,
                            ONNXTensorElementDataType) {
    Value made;
    made.info.shape.assign(sizes, sizes + axes);
    if (bytes != 4 * made.info.GetElementCount()) throw std::runtime_error("other sizes than bytes");
    return made;
  }
  Info GetTensorTypeAndShapeInfo() const { return info; }
  template <class T>
  const T* GetTensorData() const { return values.data(); }
};
struct Session {
  std::vector<Known> known;
  Session(const Env&, const char* path, const SessionOptions&) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      Known one;
      words >> one.name >> one.file;
      for (std::int64_t size; words >> size;) one.shape.push_back(size);
      known.push_back(one);
    }
  }
  Name GetOutputNameAllocated(std::size_t i, AllocatorWithDefaultOptions&) const { return {known[i + 1].name}; }
  std::size_t GetOutputCount() const { return known.size() - 1; }
  std::vector<Value> Run(const RunOptions&, const char* const* names, const Value*, std::size_t count,
                         const char* const*, std::size_t) const {
    if (count != 1 || known[0].name != names[0]) throw std::runtime_error("another input than the model's");
    std::vector<Value> found;
    for (std::size_t i = 1; i < known.size(); ++i) {
      Value value{{known[i].shape}, {}};
      value.values.resize(value.info.GetElementCount());
      std::ifstream file(known[i].file, std::ios::binary);
      file.read(reinterpret_cast<char*>(value.values.data()), static_cast<std::streamsize>(value.values.size() * 4));
      if (!file) throw std::runtime_error("cannot read " + known[i].file);
      found.push_back(value);
    }
    return found;
  }
};

}  // namespace Ort
