// SPDX-License-Identifier: MIT
// inspect_router from outside: what it finds in files, its pages, its answers to bad input.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "files.hpp"
#include "support/program_folder.hpp"
#include "support/routing_trace.hpp"

namespace {

namespace fs = std::filesystem;
using gatepro::Index;
using gatepro::RowMatrix;
using nlohmann::json;

using data::read;
void write(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

struct Result {
  int exit_code;
  std::string out, err;
};

class Program : public data::ProgramFolder {
 protected:
  /// Runs in the folder; `arguments` is a piece of shell.
  Result run(const std::string& arguments) const {
    const std::string command = "cd '" + folder.string() + "' && '" INSPECT_ROUTER_PROGRAM "' " +
                                arguments + " > stdout 2> stderr";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(folder / "stdout"),
            read(folder / "stderr")};
  }
  /// Runs into folder/out, and returns its numbers.
  json inspect(const std::string& arguments) const {
    const Result result = run(arguments + " --no-png --out out");
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(read(folder / "out/inspect.json"), nullptr, false);
  }
};

RowMatrix<float> random_matrix(Index rows, Index cols, unsigned seed) {
  std::mt19937 bits(seed);
  RowMatrix<float> matrix(rows, cols);
  for (Index i = 0; i < matrix.size(); ++i) {
    matrix.data()[i] = static_cast<float>(static_cast<double>(bits()) / 4294967296.0 - 0.5);
  }
  return matrix;
}

std::string random_npy(Index rows, Index cols, unsigned seed) {
  const RowMatrix<float> matrix = random_matrix(rows, cols, seed);
  return report::npy_bytes(matrix);
}

/// The largest cosine of row e with another, in double.
double partner_cosine(const RowMatrix<float>& w_EH, Index e) {
  const auto w = w_EH.cast<double>();
  double best = -2;
  for (Index j = 0; j < w_EH.rows(); ++j) {
    if (j == e) continue;
    best = std::max(best, w.row(e).dot(w.row(j)) / (w.row(e).norm() * w.row(j).norm()));
  }
  return best;
}

/// Numbers as their upper 16 bits: bfloat16 by truncation. `w` becomes what is stored.
std::string bfloat16s(RowMatrix<float>& w) {
  std::string bytes;
  for (Index i = 0; i < w.size(); ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, w.data() + i, sizeof bits);
    bits &= 0xffff0000;
    std::memcpy(w.data() + i, &bits, sizeof bits);
    bytes += little_endian(bits >> 16, 2);
  }
  return bytes;
}

TEST_F(Program, FindsPartnersOfAHandWorkedRouter) {
  // Rows at 0, 30, 100 and 300 degrees.
  RowMatrix<float> w_EH(4, 2);
  const double degree = std::acos(-1.0) / 180;
  Index e = 0;
  for (const double angle : {0.0, 30.0, 100.0, 300.0}) {
    w_EH.row(e++) << static_cast<float>(2 * std::cos(angle * degree)),
        static_cast<float>(2 * std::sin(angle * degree));
  }
  write(folder / "router.3.npy", report::npy_bytes(w_EH));
  const json layer = inspect("router.3.npy --group-at 0.8")["layers"][0];
  EXPECT_EQ(layer["experts"], 4);
  EXPECT_EQ(layer["similarity"]["partner_of_expert"], (std::vector<int>{1, 0, 1, 0}));
  EXPECT_EQ(layer["similarity"]["mutual_pairs"], 1);
  EXPECT_NEAR(layer["similarity"]["partner_cosine_of_expert"][2].get<double>(),
              std::cos(70 * degree), 1e-6);
  EXPECT_EQ(layer["redundant_groups"].size(), 1U);
  EXPECT_EQ(layer["redundant_groups"][0]["experts"].size(), 2U);
}

TEST_F(Program, ReadsShardedCheckpointsOfPublishedShapes) {
  struct Shape {
    Index experts, hidden;
  };
  const Shape shapes[] = {{8, 4096}, {64, 2048}, {128, 2048}, {256, 7168}};
  std::vector<RowMatrix<float>> routers;
  json map;
  for (unsigned l = 0; l < 4; ++l) {
    routers.push_back(random_matrix(shapes[l].experts, shapes[l].hidden, l));
    const std::string data = bfloat16s(routers.back());
    const std::string name = "model.layers." + std::to_string(l + 9) + ".mlp.gate.weight";
    const std::string file = "model-0000" + std::to_string(l) + ".safetensors";
    const json header = {
        {"a.norm", {{"dtype", "F8_E8M0"}, {"shape", {3}}, {"data_offsets", {0, 3}}}},
        {name,
         {{"dtype", "BF16"},
          {"shape", {shapes[l].experts, shapes[l].hidden}},
          {"data_offsets", {3, 3 + data.size()}}}}};
    write(folder / file, safetensors(header.dump(), "xyz" + data));
    map[name] = file;
    map["a.norm"] = file;
  }
  write(folder / "model.safetensors.index.json",
        json({{"metadata", {{"total_size", 0}}}, {"weight_map", map}}).dump());

  const json report = inspect(".");
  ASSERT_EQ(report["layers"].size(), 4U);
  for (unsigned l = 0; l < 4; ++l) {
    const json& layer = report["layers"][l];
    EXPECT_EQ(layer["label"], "model.layers." + std::to_string(l + 9) + ".mlp.gate.weight");
    for (Index e = 0; e < shapes[l].experts; e += shapes[l].experts / 8) {
      EXPECT_NEAR(layer["similarity"]["partner_cosine_of_expert"][static_cast<std::size_t>(e)]
                      .get<double>(),
                  partner_cosine(routers[l], e), 2e-5);
    }
    // Chance: the mean of the random routers is what this random router has.
    EXPECT_NEAR(layer["similarity"]["partners"]["mean"].get<double>(),
                layer["similarity"]["random_router"]["mean_partner_cosine"].get<double>(), 0.01);
    EXPECT_TRUE(layer["redundant_groups"].empty());
  }
}

TEST_F(Program, ReadsStacksTransposedAndNamedTensors) {
  const RowMatrix<float> w = random_matrix(6, 5, 1);
  const RowMatrix<float> turned = w.transpose();
  std::string stack = floats({turned.data(), turned.data() + turned.size()});
  write(folder / "s.npy", npy(npy_dictionary("<f4", "(2, 5, 6)"), stack + stack));
  const json twice = inspect("s.npy --transpose");
  ASSERT_EQ(twice["layers"].size(), 2U);
  EXPECT_EQ(twice["layers"][0]["similarity"], twice["layers"][1]["similarity"]);
  const json header = {{"x.y", {{"dtype", "F32"}, {"shape", {5, 6}}, {"data_offsets", {0, 120}}}}};
  write(folder / "m.safetensors", safetensors(header.dump(), stack));
  const json named = inspect("m.safetensors --transpose --name 'x.*'");
  EXPECT_EQ(named["layers"][0]["similarity"], twice["layers"][0]["similarity"]);
  EXPECT_NEAR(named["layers"][0]["similarity"]["partner_cosine_of_expert"][4].get<double>(),
              partner_cosine(w, 4), 1e-5);
}

TEST_F(Program, RoutesGivenTokens) {
  const RowMatrix<float> w = random_matrix(9, 16, 1), x = random_matrix(400, 16, 2);
  write(folder / "w.2.npy", report::npy_bytes(w));
  write(folder / "x.2.npy", report::npy_bytes(x));
  const json routing = inspect("w.2.npy --x 'x.*.npy' --top-k 3")["layers"][0]["routing"];
  std::vector<std::int64_t> load_E(9);
  const RowMatrix<double> logits = x.cast<double>() * w.cast<double>().transpose();
  for (Index t = 0; t < 400; ++t) {
    std::vector<Index> ids{0, 1, 2, 3, 4, 5, 6, 7, 8};
    std::sort(ids.begin(), ids.end(),
              [&](Index a, Index b) { return logits(t, a) > logits(t, b); });
    for (std::size_t k = 0; k < 3; ++k) ++load_E[static_cast<std::size_t>(ids[k])];
  }
  EXPECT_EQ(routing["load_of_expert"], load_E);
  EXPECT_EQ(routing["tokens"], 400);
  double weight = 0;
  for (const double of_expert : routing["weight_of_expert"]) weight += of_expert;
  EXPECT_NEAR(weight, 400, 1e-3);
  EXPECT_GT(routing["mean_largest_weight"], 1.0 / 3);
  EXPECT_GT(routing["changed_by_elimination"].get<double>(), 0);
}

TEST_F(Program, LooksAtTracesWithAndWithoutWeights) {
  fs::create_directory(folder / "trace");
  const std::vector<std::int32_t> ids{0, 1, 0, 1, 2, 3, 0, 2};
  const std::vector<float> weights{0.75F, 0.25F, 0.5F, 0.5F, 1, 0, std::nanf(""), 0.25F};
  for (int rank = 0; rank < 2; ++rank) {
    std::string lines;
    for (Index layer = 0; layer < 2; ++layer) {
      lines += report::trace_line({5, layer, rank},
                                  gatepro::MatrixView<const std::int32_t>(ids.data(), 4, 2),
                                  gatepro::MatrixView<const float>(weights.data(), 4, 2));
    }
    write(folder / "trace" / ("router_trace_rank" + std::to_string(rank) + ".jsonl"), lines);
  }
  const json alone = inspect("--trace trace --experts 5");
  ASSERT_EQ(alone["layers"].size(), 2U);
  const json& routing = alone["layers"][1]["routing"];
  EXPECT_EQ(routing["load_of_expert"], (std::vector<int>{6, 4, 4, 2, 0}));
  EXPECT_EQ(routing["tokens"], 8);
  EXPECT_EQ(routing["zero_token_experts"], 1);
  EXPECT_EQ(routing["weight_of_expert"], (std::vector<double>{2.5, 1.5, 2.5, 0, 0}));
  EXPECT_EQ(routing["mean_largest_weight"], 0.625);
  EXPECT_EQ(inspect("--trace trace")["layers"][0]["experts"], 4);

  write(folder / "w.1.npy", random_npy(4, 8, 3));
  const json both = inspect("w.1.npy --trace trace")["layers"][0];
  EXPECT_EQ(both["routing"]["load_of_expert"], (std::vector<int>{6, 4, 4, 2}));
  EXPECT_EQ(both["routing"]["source"], "traced over 1 step on 2 ranks");
  write(folder / "w.9.npy", random_npy(4, 8, 3));
  EXPECT_TRUE(inspect("w.9.npy --trace trace --trace-offset -8")["layers"][0].contains("routing"));
}

TEST_F(Program, PagesAreWellFormedAndRepeatThemselves) {
  for (const int experts : {2, 8, 30, 64, 256}) {
    // Markup, a byte that is not UTF-8, and a code point that XML lacks.
    write(folder / "<&w>\xff\xef\xbf\xbf.0.npy", random_npy(experts, 32, 1));
    write(folder / "b.1.npy", random_npy(experts, 32, 2));
    write(folder / "x.npy", random_npy(300, 32, 3));
    const std::string arguments =
        "'<&w>\xff\xef\xbf\xbf.0.npy' b.1.npy --x x.npy --top-k 2 --group-at 0.2 --no-png --out ";
    EXPECT_EQ(run(arguments + "one").exit_code, 0);
    EXPECT_EQ(run(arguments + "two").exit_code, 0);
    int files = 0;
    for (const auto& entry : fs::directory_iterator(folder / "one")) {
      ++files;
      const std::string text = read(entry.path());
      EXPECT_EQ(text, read(folder / "two" / entry.path().filename())) << entry.path();
      EXPECT_EQ(text.find("<script"), std::string::npos);
      for (const char* number : {"\"nan", "\"-nan", "\"inf", " nan", " -nan"}) {
        EXPECT_EQ(text.find(number), std::string::npos) << entry.path();
      }
      EXPECT_EQ(text.find("src="), std::string::npos);
#ifdef INSPECT_ROUTER_XMLLINT
      if (entry.path().extension() == ".json") continue;
      const std::string command =
          INSPECT_ROUTER_XMLLINT " --noout --nonet '" + entry.path().string() + "'";
      EXPECT_EQ(std::system(command.c_str()), 0);
#endif
    }
    EXPECT_EQ(files, 4);  // the page, the numbers, two layers
    fs::remove_all(folder / "one");
    fs::remove_all(folder / "two");
  }
}

TEST_F(Program, NamesDoNotReachTheTerminalAsTheyAre) {
  const auto is_plain = [](const std::string& text) {
    return std::none_of(text.begin(), text.end(), [](char c) {
      return c != '\n' && (static_cast<unsigned char>(c) < 0x20 || c == 0x7f);
    });
  };
  write(folder / "a\x1b[31m\r.npy", random_npy(4, 8, 1));
  write(folder / "b\x1b[31m\r.npy", "not a .npy");
  const Result good = run("a*.npy --no-png --out out"), bad = run("b*.npy --out out");
  EXPECT_EQ(good.exit_code, 0) << good.err;
  EXPECT_TRUE(is_plain(good.out)) << good.out;
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_TRUE(is_plain(bad.err)) << bad.err;
}

TEST_F(Program, TakesTheLayersNumberFromTheWholeNameWhereNoStarIsIt) {
  std::string data;
  json header;
  for (const int layer : {10, 2, 1}) {
    header["model.layers." + std::to_string(layer) + ".gate"] = {
        {"dtype", "F32"}, {"shape", {2, 1}}, {"data_offsets", {data.size(), data.size() + 8}}};
    data += floats({1, 2});
  }
  write(folder / "m.safetensors", safetensors(header.dump(), data));
  const json layers = inspect("m.safetensors --name '*gate'")["layers"];
  ASSERT_EQ(layers.size(), 3U);
  EXPECT_EQ(layers[0].at("layer"), 1);
  EXPECT_EQ(layers[1].at("layer"), 2);
  EXPECT_EQ(layers[2].at("layer"), 10);
}

TEST_F(Program, RefusesBadInputInOneLineAndWritesNothing) {
  const RowMatrix<float> w = random_matrix(4, 8, 1);
  write(folder / "w.npy", report::npy_bytes(w));
  write(folder / "x.npy", random_npy(5, 7, 1));
  write(folder / "one.npy", random_npy(1, 8, 1));
  write(folder / "huge.npy", npy(npy_dictionary("<f4", "(2048, 4294967296)"), "abcd"));
  write(folder / "short.npy", report::npy_bytes(w).substr(0, 150));
  write(folder / "w.txt", "w");
  write(folder / "m.safetensors", safetensors("{}", ""));
  write(folder / "other.safetensors",
        safetensors(R"({"a.switch":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                    R"("b.router":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
                    ""));
  write(folder / "lost.safetensors.index.json",
        R"({"weight_map":{"model.layers.0.mlp.gate.weight":"m.safetensors"}})");
  write(folder / "gone.safetensors.index.json",
        R"({"weight_map":{"model.layers.0.mlp.gate.weight":"gone"}})");
  write(folder / "t.jsonl",
        R"({"step":0,"layer":0,"rank":0,"num_tokens":1,"top_indices":[[9,1]]})");
  write(folder / "empty.jsonl", "");
  write(folder / "stack.npy", npy(npy_dictionary("<f4", "(0, 4, 8)"), ""));
  RowMatrix<float> large = RowMatrix<float>::Constant(4, 8, 3e38F);
  write(folder / "large.npy", report::npy_bytes(large));
  fs::create_directory(folder / "nothing");
  const std::pair<const char*, const char*> cases[] = {
      {"", "nothing to look at"},
      {"missing.npy", "missing.npy: file: does not exist"},
      {"w.txt", "w.txt: name: need .npy"},
      {"nothing", "nothing: folder: need model.safetensors.index.json"},
      {"one.npy", "need 2 to 2048 experts"},
      {"huge.npy", "huge.npy: shape:"},
      {"short.npy", "short.npy: shape: (4, 8) needs 128 bytes"},
      {"m.safetensors", "no tensor's name fits"},
      {"other.safetensors", "there are 'b.router', 'a.switch'; give --name"},
      {"lost.safetensors.index.json", "is not in 'm.safetensors'"},
      {"gone.safetensors.index.json", "gone: file: does not exist"},
      {"w.npy --x x.npy --top-k 2", "x.npy: shape: need 8 columns"},
      {"w.npy --x x.npy", "--x needs --top-k"},
      {"w.npy --x w.npy --top-k 5", "has only 4 experts"},
      {"w.npy --top-k 2", "--top-k is for --x"},
      {"stack.npy", "need 1 to 4096 layers in a stack (got the shape (0, 4, 8))"},
      {"large.npy --x large.npy --top-k 2", "the logits of 4 tokens leave float"},
      {"w.npy --trace t.jsonl", "has no layer of these weights, which begin with 'w.npy'"},
      {"w.npy --trace t.jsonl --trace-offset 1", "the layers 0 (see --trace-offset)"},
      {"w.npy --x 'x*.npy' --top-k 2", "no layer's number"},
      {"w.npy --x x.npy --top-k 2 --trace t.jsonl", "choose one"},
      {"--trace missing.jsonl", "missing.jsonl: file: does not exist"},
      {"--trace nothing", "need router_trace_rank*.jsonl"},
      {"--trace empty.jsonl", "has no decisions"},
      {"--trace t.jsonl --experts 9", "need ids below the number of experts (got 9"},
      {"w.npy --group-at 2", "--group-at"},
      {"w.npy --unknown", "--unknown"},
  };
  for (const auto& [arguments, message] : cases) {
    const Result result = run(std::string(arguments) + " --out out");
    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.err.rfind("inspect_router: ", 0), 0U) << result.err;
    EXPECT_NE(result.err.find(message), std::string::npos) << arguments << ": " << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_FALSE(fs::exists(folder / "out")) << arguments;
  }
}

}  // namespace
