# SPDX-License-Identifier: MIT
# Draws data/peers.dat and data/features.dat into the folder out; plot_bench.sh makes them.
# Colours of Okabe and Ito, which colour-blind readers can tell apart. A white ground, for dark pages.
set encoding utf8
set datafile missing '?'
set border 3 lc rgb '#505050'
set tics nomirror out
set grid ytics lc rgb '#e4e4e4' lt 1 lw 0.6
black = '#000000'; blue = '#0072b2'; orange = '#d55e00'; green = '#009e73'; pink = '#cc79a7'

set terminal svg size 860,420 font 'Helvetica,14' background rgb 'white'
set output out.'/bench_peers.svg'
set multiplot layout 1,2
set logscale x 2
set xrange [56:300]
set xtics (64, 128, 256)
set xlabel 'experts'
set ylabel 'time of the other, by ours'
set key top left Left reverse samplen 2.5 spacing 1.1
peers = data.'/peers.dat'

set title 'gate, whole router and backward'
set yrange [0:13]
plot 1 with lines lc rgb '#707070' dt (2,2) notitle, \
  peers index 4 with linespoints lw 2 pt 7 ps 0.6 lc rgb orange title 'backward: LibTorch', \
  peers index 3 with linespoints lw 2 pt 5 ps 0.6 lc rgb black title 'whole router: LibTorch', \
  peers index 2 with linespoints lw 2 pt 9 ps 0.7 lc rgb green title 'gate: Eigen', \
  peers index 0 with linespoints lw 2 pt 11 ps 0.7 lc rgb blue title 'gate: OpenBLAS', \
  peers index 1 with linespoints lw 2 pt 13 ps 0.8 lc rgb pink title 'gate: oneDNN'

set title 'selection of 8 experts'
set yrange [0:60]
plot 1 with lines lc rgb '#707070' dt (2,2) notitle, \
  peers index 7 with linespoints lw 2 pt 7 ps 0.6 lc rgb orange title 'LibTorch', \
  peers index 5 with linespoints lw 2 pt 5 ps 0.6 lc rgb black title 'std::partial\_sort', \
  peers index 6 with linespoints lw 2 pt 9 ps 0.7 lc rgb green title '8 scans for the largest', \
  peers index 8 with linespoints lw 2 pt 11 ps 0.7 lc rgb blue title 'softmax of all, partial\_sort'
unset multiplot

reset
set encoding utf8
set datafile missing '?'
set terminal svg size 720,400 font 'Helvetica,14' background rgb 'white'
set output out.'/bench_features.svg'
set border 1 lc rgb '#505050'
set tics nomirror out
set ytics scale 0
set grid xtics ytics lc rgb '#e4e4e4' lt 1 lw 0.6
set xlabel 'time of a selection with the feature, by that of the plain selection'
set xrange [0:*]
set yrange [10.7:-0.7]
set key top right samplen 1 spacing 1.2
set arrow from 1, graph 0 to 1, graph 1 nohead dt (2,2) lc rgb '#707070'
features = data.'/features.dat'
plot features using 2:($0-0.2) with points pt 7 ps 0.8 lc rgb blue title 'E = 64', \
  features using 3:0:ytic(1) with points pt 5 ps 0.7 lc rgb orange title 'E = 128', \
  features using 4:($0+0.2) with points pt 9 ps 0.9 lc rgb black title 'E = 256'
