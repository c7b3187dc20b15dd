// SPDX-License-Identifier: MIT
// The readers, against files written by hand: what they read, and what they refuse.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "files.hpp"
#include "inspect_router/checkpoint.hpp"
#include "inspect_router/npy.hpp"
#include "inspect_router/safetensors.hpp"
#include "inspect_router/trace.hpp"
#include "support/routing_trace.hpp"

namespace {

using namespace inspect_router;
using namespace std::string_literals;

/// The message of the UserError that `action` ends in.
template <class Action>
std::string refusal(const Action& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "nothing was refused";
}

RowMatrix<float> read_npy(const std::string& bytes) {
  const MemorySource source("w.npy", bytes);
  return read_matrix(source, read_npy_header(source));
}
std::string npy_refusal(const std::string& bytes) {
  return refusal([&] { read_npy(bytes); });
}
std::string tensors_refusal(const std::string& bytes) {
  return refusal([&] { read_safetensors_header(MemorySource("m.safetensors", bytes)); });
}
Trace read_trace(const std::string& bytes) {
  Trace trace;
  add_trace(MemorySource("t.jsonl", bytes), trace);
  return trace;
}
std::string trace_refusal(const std::string& bytes) {
  return refusal([&] { read_trace(bytes); });
}

#define EXPECT_SAYS(message, part) EXPECT_NE(message.find(part), std::string::npos) << message

TEST(Npy, ReadsEveryVersionAndScalar) {
  const std::vector<float> values{1, -2.5F, 0.5F, 3, -0.0F, 65504};
  for (const int version : {1, 2, 3}) {
    const auto matrix = read_npy(npy(npy_dictionary("<f4", "(2, 3)"), floats(values), version));
    ASSERT_EQ(matrix.rows(), 2);
    ASSERT_EQ(matrix.cols(), 3);
    for (Index i = 0; i < 6; ++i) EXPECT_EQ(matrix.data()[i], values[static_cast<std::size_t>(i)]);
  }
  // Hand-worked: 1.5, -2 and the smallest subnormal in each type of 16 bits.
  const auto halves =
      read_npy(npy(npy_dictionary("<f2", "(1, 3)"),
                   little_endian(0x3e00, 2) + little_endian(0xc000, 2) + little_endian(0x0001, 2)));
  EXPECT_EQ(halves(0, 0), 1.5F);
  EXPECT_EQ(halves(0, 1), -2);
  EXPECT_EQ(halves(0, 2), std::ldexp(1.0F, -24));
  for (const char* descr : {"|V2", "<V2"}) {
    const auto brains = read_npy(
        npy(npy_dictionary(descr, "(1, 3)"),
            little_endian(0x3fc0, 2) + little_endian(0xc000, 2) + little_endian(0x0001, 2)));
    EXPECT_EQ(brains(0, 0), 1.5F);
    EXPECT_EQ(brains(0, 1), -2);
    EXPECT_EQ(brains(0, 2), std::ldexp(1.0F, -133));
  }
  const auto doubles =
      read_npy(npy(npy_dictionary("<f8", "(1, 1)"), little_endian(0x3fb999999999999a, 8)));
  EXPECT_EQ(doubles(0, 0), 0.1F);
}

TEST(Npy, ReadsBigEndianNumbers) {
  const auto singles = read_npy(npy(npy_dictionary(">f4", "(1, 2)"), "\x3f\xc0\0\0\xc0\0\0\0"s));
  EXPECT_EQ(singles(0, 0), 1.5F);
  EXPECT_EQ(singles(0, 1), -2);
  EXPECT_EQ(read_npy(npy(npy_dictionary(">f2", "(1, 1)"), "\x3e\0"s))(0, 0), 1.5F);
  EXPECT_EQ(read_npy(npy(npy_dictionary(">f8", "(1, 1)"), "\x3f\xf8\0\0\0\0\0\0"s))(0, 0), 1.5F);
}

TEST(Npy, ReadsMatricesInFortransOrder) {
  const auto matrix = read_npy(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
                                   floats({1, 4, 2, 5, 3, 6})));
  ASSERT_EQ(matrix.rows(), 2);
  ASSERT_EQ(matrix.cols(), 3);
  for (Index i = 0; i < 6; ++i) EXPECT_EQ(matrix.data()[i], static_cast<float>(i + 1));
}

TEST(Npy, ReadsTheMatricesOfAStack) {
  const MemorySource source("w.npy",
                            npy(npy_dictionary("<f4", "(3, 1, 2)"), floats({1, 2, 3, 4, 5, 6})));
  const Tensor tensor = read_npy_header(source);
  EXPECT_EQ(read_matrix(source, tensor, 2)(0, 1), 6);
  EXPECT_EQ(read_matrix(source, tensor, 0)(0, 0), 1);
}

TEST(Npy, NamesFileFieldAndRule) {
  const std::string data = floats({1, 2});
  const auto with = [&](const std::string& dictionary) {
    return npy_refusal(npy(dictionary, data));
  };
  EXPECT_SAYS(npy_refusal(""), "w.npy: byte 0: the file ends at byte 0");
  EXPECT_SAYS(npy_refusal("PK\3\4 not a npy file"), "w.npy: magic:");
  EXPECT_SAYS(npy_refusal(npy(npy_dictionary("<f4", "(1, 2)"), data, 4)), "version:");
  EXPECT_SAYS(npy_refusal(npy(npy_dictionary("<f4", "(1, 2)"), data).substr(0, 40)), "byte 10:");
  EXPECT_SAYS(npy_refusal(std::string("\x93NUMPY\2\0", 8) + "\xff\xff\xff\xff"), "header length:");
  EXPECT_SAYS(with(npy_dictionary("<i4", "(1, 2)")), "descr: need f4, f2 or f8 behind < or >");
  EXPECT_SAYS(with(npy_dictionary("=f4", "(1, 2)")), "(got '=f4')");
  EXPECT_SAYS(with(npy_dictionary("", "(1, 2)")), "(got '')");
  EXPECT_SAYS(with("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1, 2), }"),
              "fortran_order: need False for more than a matrix");
  EXPECT_SAYS(with("{'descr': '<f4', 'fortran_order': 1, 'shape': (1, 2), }"), "True or False");
  EXPECT_SAYS(with("{'descr': '<f4', 'shape': (1, 2), }"), "lacks fortran_order");
  EXPECT_SAYS(with("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}"),
              "the key descr twice");
  EXPECT_SAYS(with("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), 'x': 1}"), "'x'");
  EXPECT_SAYS(with("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 2)}"),
              "quoted string for descr");
  EXPECT_SAYS(with(npy_dictionary("<f4", "(-1, 2)")), "whole numbers from 0");
  EXPECT_SAYS(with(npy_dictionary("<f4", "(1, 3)")), "needs 12 bytes behind the header, but");
  EXPECT_SAYS(with(npy_dictionary("<f4", "(9223372036854775807, 2)")), "leaves 63 bits");
  EXPECT_SAYS(with(npy_dictionary("<f4", "(4611686018427387904, 4)")), "leaves 63 bits");
  EXPECT_SAYS(with(npy_dictionary("<f4", "(99999999999999999999, 2)")), "leaves 63 bits");
  EXPECT_SAYS(with(npy_dictionary("<f4", "(0, 2)")), "needs 0 bytes");
  EXPECT_SAYS(with(npy_dictionary("<f4", "(2,)")), "need a matrix");
  EXPECT_SAYS(with(npy_dictionary("<f4", "(1, 2)") + "junk"), "behind the dictionary");
  EXPECT_SAYS(with("{'descr': '<f4"), "without an end");
  EXPECT_SAYS(npy_refusal(npy(npy_dictionary("<f4", "(1, 2)"), floats({1, std::nanf("")}))),
              "row 0, column 1 is NaN");
  EXPECT_SAYS(
      npy_refusal(npy(npy_dictionary("<f8", "(1, 1)"), little_endian(0x7e37e43c8800759c, 8))),
      "beyond float");
}

const char* const two_tensors =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[1,3],"data_offsets":[0,6]},)"
    R"("b":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]}})";

TEST(Safetensors, ReadsTensorsAtAnyAlignment) {
  const MemorySource source(
      "m.safetensors",
      safetensors(two_tensors, little_endian(0x3fc0, 2) + little_endian(0xc000, 2) +
                                   little_endian(0x3f80, 2) + floats({7, -8})));
  const auto tensors = read_safetensors_header(source);
  ASSERT_EQ(tensors.size(), 2U);
  const auto a = read_matrix(source, readable("m", "a", tensors.at("a")));
  EXPECT_EQ(a(0, 0), 1.5F);
  EXPECT_EQ(a(0, 1), -2);
  const auto b = read_matrix(source, readable("m", "b", tensors.at("b")));
  EXPECT_EQ(b.rows(), 2);
  EXPECT_EQ(b(1, 0), -8);
  // Padding in front of the data is spaces.
  EXPECT_NO_THROW(read_safetensors_header(
      MemorySource("m", safetensors(std::string(two_tensors) + "   ", std::string(14, '\0')))));
}

TEST(Safetensors, TypesThatRoutersLackAreLeftUnlessAskedFor) {
  const MemorySource source(
      "m", safetensors(R"({"x":{"dtype":"F4_SOMETHING","shape":[3],"data_offsets":[0,2]}})", "ab"));
  const auto tensors = read_safetensors_header(source);
  EXPECT_SAYS(refusal([&] { readable("m", "x", tensors.at("x")); }), "need dtype F32");
}

TEST(Safetensors, NamesFileFieldAndRule) {
  const std::string data(14, '\0');
  const auto with = [&](const std::string& header) {
    return tensors_refusal(safetensors(header, data));
  };
  const auto one = [&](const std::string& fields) {
    return tensors_refusal(safetensors("{\"a\":{" + fields + "}}", std::string(8, '\0')));
  };
  EXPECT_SAYS(tensors_refusal("1234567"), "m.safetensors: byte 0: the file ends at byte 7");
  EXPECT_SAYS(tensors_refusal(little_endian(1, 8)), "header length:");
  EXPECT_SAYS(tensors_refusal(little_endian(~std::uint64_t{0}, 8) + "{}"), "header length:");
  EXPECT_SAYS(with(" {}"), "starts at once");
  EXPECT_SAYS(with("{}"), "data_offsets: the tensors end at byte 10, the file at 24");
  EXPECT_SAYS(with("{\"a\":"), "is not JSON at byte");
  EXPECT_SAYS(with("{\"a\":\xff}"), "is not JSON");
  EXPECT_SAYS(with("[]"), "starts at once");
  EXPECT_SAYS(with(std::string(5000, '[')), "starts at once");
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  EXPECT_SAYS(with(deep), "'a'");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"shape":[2])"), "stands twice");
  EXPECT_SAYS(with(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                   R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"),
              "header 'a': stands twice");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), "needs 12 bytes");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8])"),
              "leaves 63 bits");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), "not before it");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,9])"), "number from 0 to 8");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), "a begin and an end");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4,8])"), "two offsets");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), "whole number");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), "whole number");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[1e400],"data_offsets":[0,8])"), "header");
  EXPECT_SAYS(one(R"("dtype":4,"shape":[2],"data_offsets":[0,8])"), "'dtype': need a string");
  EXPECT_SAYS(one(R"("shape":[2],"data_offsets":[0,8])"), "need dtype, shape");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])"), "deeper than 3");
  EXPECT_SAYS(one(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":0)"), "need only dtype");
  const auto pair = [&](const char* first, const char* second) {
    return with(std::string(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)") + first +
                R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + second + "}}");
  };
  EXPECT_SAYS(pair("[0,8]", "[4,8]"), "tensor 'b': data_offsets overlap");
  EXPECT_SAYS(pair("[0,8]", "[10,14]"), "tensor 'b': data_offsets leave a gap");
  EXPECT_SAYS(pair("[0,8]", "[8,12]"), "the tensors end at byte");
}

TEST(SafetensorsIndex, MapsTensorsToFilesOfTheFolder) {
  const auto files = read_safetensors_index(MemorySource(
      "i", R"({"metadata":{"total_size":8},"weight_map":{"a":"x-1.safetensors","b":"y"}})"));
  EXPECT_EQ(files.at("a"), "x-1.safetensors");
  EXPECT_EQ(files.at("b"), "y");
  const auto refused = [](const std::string& text) {
    return refusal([&] { read_safetensors_index(MemorySource("i.json", text)); });
  };
  EXPECT_SAYS(refused("{}"), "i.json: index: lacks weight_map");
  for (const char* name : {"../x", "/etc/passwd", "a/b", "", ".hidden", "a\\\\b", "a\\u0000b"}) {
    EXPECT_SAYS(refused(std::string(R"({"weight_map":{"a":")") + name + "\"}}"),
                "in the folder of the index");
  }
  EXPECT_SAYS(refused(R"({"weight_map":["a"]})"), "need an object");
  EXPECT_SAYS(refused(R"({"weight_map":{"a":["b"]}})"), "need the name of a file");
  EXPECT_SAYS(refused(R"({"weight_map":{"a":3}})"), "need a string");
  EXPECT_SAYS(refused(R"({"weight_map":{"a":"b","a":"b"}})"), "stands twice");
}

// Files of the libraries that users have; see written_by_python/write.py.
TEST(Checkpoints, OfPythonsOwnLibrariesAreRead) {
  const fs::path folder = INSPECT_ROUTER_WRITTEN_BY_PYTHON;
  const auto layer = [&](const char* number) {
    const FileSource file(folder / (std::string("layer_") + number + ".npy"));
    return read_matrix(file, read_npy_header(file));
  };
  for (const fs::path& checkpoint : {folder / "model.safetensors", folder / "sharded"}) {
    const std::vector<StoredRouter> routers = find_routers({checkpoint.string()}, "");
    ASSERT_EQ(routers.size(), 3U) << checkpoint;
    const std::vector<const char*> numbers{"0", "1", "10"};
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(routers[i].layer, std::stoull(numbers[i]));
      EXPECT_EQ(routers[i].load(), layer(numbers[i])) << checkpoint << numbers[i];
    }
  }
  const FileSource bfloat16(folder / "bfloat16.npy");
  EXPECT_EQ(read_matrix(bfloat16, read_npy_header(bfloat16)), layer("10"));
}

std::string record(const std::string& fields) {
  return "{\"step\":3,\"stage\":\"pre_dispatch\",\"rank\":0," + fields + "}\n";
}

TEST(TraceReader, MergesStepsAndRanksOfALayer) {
  const Trace trace = read_trace(
      record(R"("block":"decoder","layer":1,"num_tokens":2,"topk":2,"top_indices":[[0,5],[2,1]])") +
      "\n" +
      R"({"rank":1,"step":4,"layer":1,"num_tokens":1,"top_indices":[[7,-1]],"hs_shape":[1,8]})" +
      "\r\n" + R"({"rank":0,"step":4,"layer":1,"block":"mtp","mtp_idx":0,"num_tokens":1,)" +
      R"("top_indices":[[7]],"top_weights":[[0.25]]})");
  ASSERT_EQ(trace.size(), 2U);
  const TraceLayer& layer = trace.at({"decoder", 0, 1});
  EXPECT_EQ(layer.ids, (std::vector<std::int32_t>{0, 5, 2, 1, 7, -1}));
  EXPECT_EQ(layer.tokens(), 3);
  EXPECT_EQ(layer.top_k, 2);
  EXPECT_EQ(layer.steps.size(), 2U);
  EXPECT_EQ(layer.ranks.size(), 2U);
  EXPECT_TRUE(layer.weights.empty());
  EXPECT_EQ(trace.at({"mtp", 0, 1}).weights, (std::vector<float>{0.25F}));
}

TEST(TraceReader, ReadsWhatTheExamplesWrite) {
  const std::vector<std::int32_t> ids{3, 0, 2, -1};
  const std::vector<float> weights{0.1F, 1.0F / 3, 1e-30F, std::nanf("")};
  const gatepro::MatrixView<const std::int32_t> ids_TK{ids.data(), 2, 2};
  const gatepro::MatrixView<const float> weights_TK{weights.data(), 2, 2};
  const std::string line = report::trace_line({7, 5, 2}, ids_TK, weights_TK);
  const Trace trace = read_trace(line + line);
  const TraceLayer& layer = trace.at({"decoder", 0, 5});
  EXPECT_EQ(layer.tokens(), 4);
  EXPECT_EQ(layer.steps, std::set<std::uint64_t>{7});
  EXPECT_EQ(layer.ranks, std::set<std::uint64_t>{2});
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(layer.ids[i], ids[i % 4]);
    EXPECT_TRUE(i % 4 == 3 || layer.weights[i] == weights[i % 4]);
  }
  EXPECT_TRUE(std::isnan(layer.weights[3]));
}

TEST(Npy, ReadsWhatTheExamplesWrite) {
  const std::vector<float> values{1, -2.5F, 0.5F, 3, 1e-30F, 7};
  const auto matrix = read_npy(report::npy_bytes({values.data(), 2, 3}));
  for (Index i = 0; i < 6; ++i) EXPECT_EQ(matrix.data()[i], values[static_cast<std::size_t>(i)]);
}

TEST(TraceReader, LinesMayCrossTheBlocksThatAreRead) {
  std::string text;
  const std::string line = record(R"("layer":0,"num_tokens":1,"top_indices":[[0,1]])");
  while (text.size() < 2500000) text += line;
  const auto lines = static_cast<Index>(text.size() / line.size());
  EXPECT_EQ(read_trace(text).at({"decoder", 0, 0}).tokens(), lines);
}

TEST(TraceReader, NamesFileLineFieldAndRule) {
  const std::string good = record(R"("layer":0,"num_tokens":1,"top_indices":[[0,1]])");
  EXPECT_SAYS(trace_refusal(good + "{\"step\":"), "t.jsonl: line 2 'step': is not JSON at byte");
  EXPECT_SAYS(trace_refusal(good + good.substr(0, 40)), "t.jsonl: line 2");
  EXPECT_SAYS(trace_refusal("[1]"), "line 1: need an object");
  EXPECT_SAYS(trace_refusal("{} {}"), "is not JSON");
  EXPECT_SAYS(trace_refusal("{}"), "line 1: lacks step");
  const auto with = [](const std::string& fields) { return trace_refusal(record(fields)); };
  EXPECT_SAYS(with(R"("num_tokens":1,"top_indices":[[0]])"), "lacks layer");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":2,"top_indices":[[0]])"), "num_tokens says 2");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"topk":2,"top_indices":[[0]])"), "topk says 2");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":2,"top_indices":[[0,1],[0]])"), "of one length");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[[]])"), "at least one number");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[[3,3]])"), "has expert 3 twice");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[[-2]])"), "'top_indices'");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[[65536]])"), "0 to 65535");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[[0.5]])"), "whole number");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[0])"), "list of lists");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":7)"), "list of lists");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[[[0]]])"), "list of lists");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[[0]],"top_weights":[[1,2]])"),
              "another shape");
  EXPECT_SAYS(with(R"("layer":0,"num_tokens":1,"top_indices":[[0]],"top_weights":[["x"]])"),
              "need numbers");
  EXPECT_SAYS(with(R"("layer":-1,"num_tokens":1,"top_indices":[[0]])"), "'layer': need a whole");
  EXPECT_SAYS(with(R"("layer":0,"layer":0,"num_tokens":1,"top_indices":[[0]])"), "stands twice");
  EXPECT_SAYS(with(R"("layer":0,"x":[[[[1]]]],"num_tokens":1,"top_indices":[[0]])"), "deeper than");
  EXPECT_SAYS(trace_refusal(good + record(R"("layer":0,"num_tokens":1,"top_indices":[[0]])")),
              "earlier lines of the layer have 2");
}

}  // namespace
