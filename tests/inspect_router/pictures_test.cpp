// SPDX-License-Identifier: MIT
// What the pictures are made of: clusters, places, patterns, numbers, pixels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "inspect_router/checkpoint.hpp"
#include "inspect_router/html_report.hpp"

namespace {

using namespace inspect_router;

RowMatrix<double> random_similarity(Index experts, unsigned seed) {
  std::mt19937 bits(seed);
  RowMatrix<double> s(experts, experts);
  for (Index i = 0; i < experts; ++i) {
    for (Index j = 0; j <= i; ++j) {
      s(i, j) = s(j, i) = i == j ? 1 : static_cast<double>(bits()) / 4294967296.0;
    }
  }
  return s;
}

/// Average linkage by the book: join the two clusters of the largest mean similarity, as long as
/// that is at least `at`. Returns the sorted groups of two or more.
std::vector<Experts> groups_by_the_book(const RowMatrix<double>& s, double at) {
  std::vector<Experts> clusters;
  for (Index e = 0; e < s.rows(); ++e) clusters.push_back({e});
  while (clusters.size() > 1) {
    double best = -1e300;
    std::size_t first = 0, second = 0;
    for (std::size_t a = 0; a < clusters.size(); ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        double sum = 0;
        for (const Index i : clusters[a]) {
          for (const Index j : clusters[b]) sum += s(i, j);
        }
        sum /= static_cast<double>(clusters[a].size() * clusters[b].size());
        if (sum > best) best = sum, first = b, second = a;
      }
    }
    if (best < at) break;
    clusters[first].insert(clusters[first].end(), clusters[second].begin(), clusters[second].end());
    clusters.erase(clusters.begin() + static_cast<std::ptrdiff_t>(second));
  }
  std::vector<Experts> groups;
  for (Experts& cluster : clusters) {
    std::sort(cluster.begin(), cluster.end());
    if (cluster.size() > 1) groups.push_back(cluster);
  }
  std::sort(groups.begin(), groups.end());
  return groups;
}

TEST(Clusters, GroupsAreThoseOfAverageLinkage) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const RowMatrix<double> s = random_similarity(2 + static_cast<Index>(seed) % 17, seed);
    for (const double at : {0.3, 0.6, 0.8}) {
      std::vector<Experts> groups = cluster(s, at).groups;
      for (Experts& group : groups) std::sort(group.begin(), group.end());
      std::sort(groups.begin(), groups.end());
      EXPECT_EQ(groups, groups_by_the_book(s, at)) << "seed " << seed << ", at " << at;
    }
  }
}

TEST(Clusters, OrderHasEveryExpertOnceAndGroupsTogether) {
  const RowMatrix<double> s = random_similarity(60, 7);
  const Clusters clusters = cluster(s, 0.6);
  Experts sorted = clusters.order;
  std::sort(sorted.begin(), sorted.end());
  for (Index e = 0; e < 60; ++e) EXPECT_EQ(sorted[static_cast<std::size_t>(e)], e);
  ASSERT_FALSE(clusters.groups.empty());
  for (const Experts& group : clusters.groups) {
    EXPECT_NE(std::search(clusters.order.begin(), clusters.order.end(), group.begin(), group.end()),
              clusters.order.end());
  }
  for (std::size_t g = 1; g < clusters.groups.size(); ++g) {
    EXPECT_GE(clusters.groups[g - 1].size(), clusters.groups[g].size());
  }
}

TEST(Clusters, EqualSimilaritiesEnd) {
  EXPECT_EQ(cluster(RowMatrix<double>::Ones(30, 30), 0.5).groups.size(), 1U);
  EXPECT_EQ(cluster(RowMatrix<double>::Zero(30, 30), 0.5).groups.size(), 0U);
  EXPECT_EQ(cluster(RowMatrix<double>::Ones(1, 1), 0.5).order, Experts{0});
}

TEST(Graph, NodesStandApartAndInside) {
  std::mt19937 bits(3);
  for (const int experts : {2, 8, 64, 256}) {
    for (const int kind : {0, 1, 2}) {  // anybody, a hub, a chain
      std::vector<std::int32_t> partner_E;
      for (int e = 0; e < experts; ++e) {
        const int other = kind == 0   ? static_cast<int>(bits() % static_cast<unsigned>(experts))
                          : kind == 1 ? 0
                                      : std::max(0, e - 1);
        partner_E.push_back(static_cast<std::int32_t>(other));
      }
      const GraphLayout layout = plan_graph(partner_E);
      for (std::size_t a = 0; a < partner_E.size(); ++a) {
        const Place& p = layout.place_E[a];
        EXPECT_TRUE(p.x > 0.4 && p.x < layout.width - 0.4 && p.y > 0.4 &&
                    p.y < layout.height - 0.4);
        for (std::size_t b = 0; b < a; ++b) {
          const Place& q = layout.place_E[b];
          EXPECT_GT(std::hypot(p.x - q.x, p.y - q.y), 0.84) << experts << ' ' << kind;
        }
      }
    }
  }
}

TEST(Names, StarsStandForAnything) {
  std::vector<std::string> parts;
  EXPECT_TRUE(matches("model.layers.*.mlp.gate.weight", "model.layers.17.mlp.gate.weight", parts));
  EXPECT_EQ(layer_number(parts), std::optional<std::uint64_t>(17));
  EXPECT_FALSE(matches("a.*.b", "a.3.c", parts));
  EXPECT_FALSE(matches("a", "ab", parts));
  EXPECT_FALSE(matches("ab*ba", "aba", parts));  // no character serves twice
  EXPECT_TRUE(matches("a*b*b", "aXbbYb", parts));
  EXPECT_EQ(parts, (std::vector<std::string>{"X", "bY"}));
  EXPECT_TRUE(matches("*decoder.layers.*.x", "module.decoder.layers.4.x", parts));
  EXPECT_EQ(layer_number(parts), std::optional<std::uint64_t>(4));
  EXPECT_EQ(layer_number(std::string("router.12")), std::optional<std::uint64_t>(12));
  EXPECT_EQ(layer_number(std::string("router12")), std::optional<std::uint64_t>(12));
  EXPECT_EQ(layer_number(std::string("layers.3.v2.gate")), std::optional<std::uint64_t>(3));
  EXPECT_EQ(layer_number(std::string("router")), std::nullopt);
}

TEST(Names, HostileOnesDoNotTakeLong) {
  std::vector<std::string> parts;
  EXPECT_FALSE(matches("*a*a*a*a*a*a*ab", std::string(1000000, 'a'), parts));
}

TEST(Names, RoutersOfPublishedCheckpointsAreKnown) {
  const auto known = [](const char* name) {
    std::vector<std::string> parts;
    return std::any_of(known_names().begin(), known_names().end(), [&](const auto& pattern) {
      return matches(pattern, name, parts) && layer_number(parts) == std::uint64_t{7};
    });
  };
  for (const char* name :
       {"model.layers.7.mlp.gate.weight", "model.language_model.layers.7.mlp.gate.weight",
        "language_model.model.layers.7.mlp.gate.weight",
        "model.layers.7.block_sparse_moe.gate.weight",
        "model.layers.7.block_sparse_moe.router.layer.weight", "model.layers.7.mlp.router.weight",
        "language_model.model.layers.7.feed_forward.router.weight",
        "module.decoder.layers.7.mlp.router.weight"}) {
    EXPECT_TRUE(known(name)) << name;
  }
  for (const char* name :
       {"model.layers.7.mlp.gate_proj.weight", "model.layers.7.mlp.shared_expert_gate.weight",
        "model.layers.7.mlp.experts.7.w1.weight", "mtp.layers.7.mlp.gate.weight",
        "model.layers.7.mlp.gate.bias"}) {
    EXPECT_FALSE(known(name)) << name;
  }
}

TEST(PlainText, IsOneLineOfUtf8) {
  using report::plain_text;
  EXPECT_EQ(plain_text("r\u00e9seau \u03bb \U0001f600"), "r\u00e9seau \u03bb \U0001f600");
  EXPECT_EQ(plain_text("a\x1b[31m\r\n\tb\x7f\u009b\u202e\u2066"), "a [31m   b    ");
  for (const char* bad : {"\xff", "\x80", "\xc3", "\xc0", "\xf5"}) {
    EXPECT_EQ(plain_text(bad), "\ufffd") << bad;
  }
  // Cut off, longer than needed, a surrogate, beyond Unicode.
  EXPECT_EQ(plain_text("\xe2\x82"), "\ufffd\ufffd");
  EXPECT_EQ(plain_text("\xe0\x80\xaf"), "\ufffd\ufffd\ufffd");
  EXPECT_EQ(plain_text("\xed\xa0\x80"), "\ufffd\ufffd\ufffd");
  EXPECT_EQ(plain_text("\xf4\x90\x80\x80"), "\ufffd\ufffd\ufffd\ufffd");
  EXPECT_EQ(plain_text("\xef\xbf\xbe|\xef\xbf\xbf"), "\ufffd|\ufffd");
}

TEST(Numbers, ReadWell) {
  EXPECT_EQ(report::number(0), "0");
  EXPECT_EQ(report::number(-0.25), "−0.250");
  EXPECT_EQ(report::number(1234.5), "1234");
  EXPECT_EQ(report::number(std::nan("")), "–");
  EXPECT_EQ(report::number(2e9), "2e+09");
  EXPECT_EQ(report::fixed(-0.0004, 2), "0.00");
  EXPECT_EQ(report::percent(0.125), "12.5\u00a0%");
  EXPECT_EQ(report::coordinate(-0.001), "0");
  EXPECT_EQ(report::coordinate(1.5), "1.5");
  EXPECT_EQ(report::escaped("<a b=\"c\">&\x01"), "&lt;a b=&quot;c&quot;&gt;&amp; ");
  EXPECT_NEAR(report::round_up(0.695), 0.7, 1e-12);
  EXPECT_NEAR(report::round_up(0.7), 0.7, 1e-12);
}

TEST(Ticks, AreRoundAndWithin) {
  std::vector<std::string> labels;
  for (const report::Tick& tick : report::linear_ticks(-0.3, 1)) labels.push_back(tick.label);
  EXPECT_EQ(labels, (std::vector<std::string>{"0.0", "0.5", "1.0"}));
  labels.clear();
  for (const report::Tick& tick : report::decade_ticks(1e-5, 1e4)) labels.push_back(tick.label);
  EXPECT_EQ(labels,
            (std::vector<std::string>{"1e-5", "", "1e-3", "", "0.1", "", "10", "", "1000", ""}));
  labels.clear();
  for (const report::Tick& tick : report::whole_ticks(0, 2)) labels.push_back(tick.label);
  EXPECT_EQ(labels, (std::vector<std::string>{"0", "1", "2"}));
}

TEST(Pixels, HaveTheChecksumsOfTheirFormats) {
  // Check values of the catalogues: CRC-32 of "123456789", Adler-32 of "Wikipedia".
  EXPECT_EQ(report::detail::crc32("123456789"), 0xcbf43926U);
  EXPECT_EQ(report::detail::adler32("Wikipedia"), 0x11e60398U);
  // By RFC 1951: the byte, and a copy of nine from one before.
  EXPECT_EQ(report::zlib_stream(std::string(10, 'a'), 99),
            std::string("\x78\x01\x4b\x84\x03\x00\x14\xe1\x03\xcb", 10));
  EXPECT_EQ(report::detail::base64("Man"), "TWFu");
  EXPECT_EQ(report::detail::base64("Ma"), "TWE=");
  EXPECT_EQ(report::detail::base64("M"), "TQ==");
  EXPECT_EQ(report::HeatScale::index(0), 127);
  EXPECT_EQ(report::HeatScale::index(-7), 0);
  EXPECT_EQ(report::HeatScale::index(1), 254);
  EXPECT_EQ(report::HeatScale::opacity(127), 0);
  EXPECT_EQ(report::HeatScale::opacity(254), 255);
}

}  // namespace
