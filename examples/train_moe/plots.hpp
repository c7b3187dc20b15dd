// SPDX-License-Identifier: MIT
// The plots: data and script for gnuplot, which stay in the folder to be edited and run again.
#ifndef TRAIN_MOE_PLOTS_HPP
#define TRAIN_MOE_PLOTS_HPP

#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "history.hpp"
#include "output.hpp"
#include "what_if.hpp"

namespace train_moe {

/// Colours of Okabe and Ito, which colour-blind readers can tell apart; dashes help on paper.
struct LineStyle {
  const char* colour;
  const char* light;  // for single seeds: the colour mixed with white
  const char* dash;
};
inline LineStyle line_style(std::size_t arm) {
  static constexpr LineStyle styles[] = {
      {"#000000", "#bdbdbd", "1"},     {"#0072b2", "#a6cde3", "(10,4)"},
      {"#d55e00", "#f2c4a0", "1"},     {"#009e73", "#a6dccc", "(10,4,2,4)"},
      {"#cc79a7", "#ecd0e0", "(5,3)"}, {"#56b4e9", "#c3e3f7", "(2,2)"}};
  return styles[arm % (sizeof styles / sizeof *styles)];
}

/// step, zero-token experts, co-activation, validation loss (? where it was not measured).
inline std::string curve(const std::vector<const Run*>& runs) {
  std::ostringstream lines;
  for (std::size_t i = 0; i < runs.front()->steps.size(); ++i) {
    Sample zero, coactivation, loss;
    for (const Run* run : runs) {
      zero.add(mean_over_layers(run->steps[i], &LayerMetrics::zero_token_experts));
      coactivation.add(mean_over_layers(run->steps[i], &LayerMetrics::coactivation));
      loss.add(run->steps[i].validation_loss);
    }
    lines << runs.front()->steps[i].step << ' ' << zero.mean() << ' ' << coactivation.mean() << ' ';
    if (std::isnan(loss.mean())) {
      lines << "?\n";
    } else {
      lines << loss.mean() << '\n';
    }
  }
  lines << "\n\n";  // gnuplot counts blocks between blank lines
  return lines.str();
}

/// The curves of the arms: each seed, then the mean.
class Curves {
 public:
  Curves(const Settings& settings, const History& history) {
    for (std::size_t a = 0; a < settings.arms.size(); ++a) {
      const auto runs = history.complete_runs(settings.arms[a].name, settings.steps);
      if (runs.empty()) continue;
      for (const Run* run : runs) {
        data_ += curve({run});
        seeds_.push_back({blocks_++, a, {}});
      }
      data_ += curve(runs);
      means_.push_back({blocks_++, a, settings.arms[a].name});
    }
  }

  const std::string& data() const { return data_; }

  /// The plot command that draws `column`, the means over the seeds.
  std::string plot(int column) const {
    std::ostringstream script;
    const char* separator = "plot ";
    const auto draw = [&](const Block& block, const char* colour, double width, const char* dash) {
      script << separator << "'curves.dat' index " << block.index << " using 1:" << column
             << " with lines lw " << width << " dt " << dash << " lc rgb '" << colour << "' ";
      separator = ", \\\n  ";
    };
    for (const Block& block : seeds_) {
      draw(block, line_style(block.arm).light, 0.7, "1");
      script << "notitle";
    }
    for (const Block& block : means_) {
      draw(block, line_style(block.arm).colour, 2.2, line_style(block.arm).dash);
      script << "title '" << block.title << "'";
    }
    return script.str();
  }

 private:
  struct Block {
    int index;
    std::size_t arm;
    std::string title;
  };
  std::string data_;
  std::vector<Block> seeds_, means_;
  int blocks_ = 0;
};

/// lambda and the share of changed tokens (mean of the layers) of the initial, then of the trained
/// network.
inline std::string what_if_curves(const std::vector<WhatIf>& results) {
  std::ostringstream lines;
  for (const char* network : {"initial", "trained"}) {
    for (const double lambda : what_if_lambdas()) {
      Sample changed;
      for (const WhatIf& row : results) {
        if (row.network == network && row.lambda == lambda) changed.add(row.changed);
      }
      // Elimination is drawn apart, right of the last lambda.
      if (std::isinf(lambda)) lines << "\n\n";
      lines << (std::isinf(lambda) ? 100 : lambda) << ' ' << 100 * changed.mean() << '\n';
    }
    lines << "\n\n";
  }
  return lines.str();
}

/// A plot command with its settings, drawn as name.svg and name.png.
inline std::string figure(const std::string& name, const std::string& settings,
                          const std::string& plot) {
  return "reset\nset encoding utf8\nset datafile missing '?'\nset border 3\nset tics nomirror out\n"
         "set grid ytics lc rgb '#e4e4e4' lt 1 lw 0.6\nset key samplen 4 spacing 1.15\n" +
         settings + "set terminal svg size 620,400 font 'Helvetica,14' background rgb 'white'\n" +
         "set output '" + name + ".svg'\n" + plot +
         "\nset terminal pngcairo size 1240,800 font 'Helvetica,13' fontscale 2 linewidth 2\n" +
         "set output '" + name + ".png'\nreplot\nset output\n\n";
}

/// The share of selections that change, against lambda.
inline std::string what_if_figure() {
  std::ostringstream plot;
  const char* separator = "plot ";
  const char* networks[] = {"initial network", "trained network"};
  for (std::size_t i = 0; i < 2; ++i) {
    const LineStyle style = line_style(i + 1);
    const std::string colour = std::string(" lc rgb '") + style.colour + "' ";
    plot << separator << "'what_if.dat' index " << 2 * i << " with lines lw 2.2 dt " << style.dash
         << colour << "title '" << networks[i] << "', \\\n  'what_if.dat' index " << 2 * i + 1
         << " with points pt 7 ps 0.9" << colour << "notitle";
    separator = ", \\\n  ";
  }
  return figure("what_if",
                "set xlabel 'penalty λ'\nset ylabel 'tokens with other experts (%)'\n"
                "set logscale x\nset xrange [1e-5:400]\nset yrange [0:*]\nset key top left\n"
                "set mxtics 1\nset format x '10^{%T}'\nset xtics 1e-5,10,10\n"
                "set xtics add ('eliminate' 100)\n"
                "set arrow from 1e-4, graph 0 to 1e-4, graph 0.4 nohead dt (2,2) lc rgb '#707070'\n"
                "set label 'published λ' at 1e-4, graph 0.44 center textcolor rgb '#505050'\n",
                plot.str());
}

inline std::string plot_script(const Settings& settings, const Curves& curves) {
  const std::string steps = std::to_string(settings.steps);
  const std::string experts = std::to_string(settings.sizes.experts);
  std::ostringstream chance;
  chance << ", \\\n  " << chance_of_coactivation(settings.sizes)
         << " with lines lw 1.4 dt (2,2) lc rgb '#707070' title 'chance'";
  const std::string x = "set xlabel 'step'\nset xrange [0:" + steps + "]\n";
  return figure("zero_token_experts",
                x + "set ylabel 'experts without a token, of " + experts +
                    "'\nset yrange [0:*]\nset key bottom right\n",
                curves.plot(2)) +
         figure("coactivation", x + "set ylabel 'co-activation of partners'\nset yrange [0:*]\n",
                curves.plot(3) + chance.str()) +
         figure("validation_loss", x + "set ylabel 'validation loss (nats per byte)'\n",
                curves.plot(4)) +
         what_if_figure();
}

/// Draws into the folder. Returns what to tell the user.
inline std::string draw_plots(const Settings& settings, const History& history,
                              const std::vector<WhatIf>& what_if) {
  const std::filesystem::path folder = settings.out;
  const Curves curves(settings, history);
  OutputFile(folder / "curves.dat").write(curves.data());
  OutputFile(folder / "what_if.dat").write(what_if_curves(what_if));
  OutputFile(folder / "plots.gp").write(plot_script(settings, curves));
  const std::string command = "cd " + quoted(settings.out) + " && gnuplot plots.gp";
  if (!can_run("gnuplot")) return "No plots: gnuplot was not found. Install it and run " + command;
  if (std::system(command.c_str()) != 0) return "No plots: gnuplot failed. Try " + command;
  return "Plots: " + (folder / "*.png").string() + " and *.svg, drawn by plots.gp";
}

}  // namespace train_moe

#endif  // TRAIN_MOE_PLOTS_HPP
