# Draws the ratios that have a goal: gnuplot -e "data = 'FILE'; picture = 'FILE'" plot.gnuplot
# The data has two sets: times, of which less is better, and rates. Columns: label, goal, median, lowest,
# highest.

set terminal svg size 1000,720 font "sans-serif,13" background "white" noenhanced
set output picture
set datafile separator tab
set encoding utf8

stats data index 0 using 4:5 name "times" nooutput
stats data index 1 using 4:5 name "rates" nooutput
# Where the one chart ends and the other begins, between the rows and two axes.
row = 0.74 / (times_records + rates_records)
times_bottom = 0.87 - row * times_records
rates_top = row * rates_records + 0.06

set logscale x
set grid xtics linecolor "#d8d8d8"
set border 1 linecolor "#888888"
set ytics scale 0 textcolor "black"
set xtics nomirror textcolor "black"
set lmargin screen 0.47
set rmargin screen 0.97
set style fill solid noborder
set bars 0.6
set arrow from 1, graph 0 to 1, graph 1 nohead front linewidth 1.5 linecolor "#444444"

smaller(a, b) = a < b ? a : b
larger(a, b) = a > b ? a : b

set multiplot

set tmargin screen 0.87
set bmargin screen times_bottom
set yrange [times_records - 0.4 : -0.6]
set xrange [smaller(0.7, 0.9 * times_min_x) : larger(3, 1.1 * times_max_y)]
set xtics (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 20, 50, 100)
set key at screen 0.98, 0.99 right top samplen 1.5 textcolor "black"
plot data index 0 using (1):0:(smaller(1, $3)):(larger(1, $3)):($0 - 0.32):($0 + 0.32) \
         with boxxyerror linecolor "#7aa6d6" title "time", \
     NaN with boxes linecolor "#8cc49a" title "rate", \
     data index 0 using 3:0:4:5:yticlabels(1) with xerrorbars pointtype 7 pointsize 0.4 linecolor "#222222" \
         title "median, range of the pairs", \
     data index 0 using 2:($0 - 0.42):(0):(0.84) with vectors nohead linewidth 3 linecolor "#d0342c" title "goal"

set tmargin screen rates_top
set bmargin screen 0.06
set yrange [rates_records - 0.4 : -0.6]
set xrange [smaller(0.5, 0.9 * rates_min_x) : larger(50, 1.1 * rates_max_y)]
set xtics (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
unset key
plot data index 1 using (1):0:(smaller(1, $3)):(larger(1, $3)):($0 - 0.32):($0 + 0.32) \
         with boxxyerror linecolor "#8cc49a", \
     data index 1 using 3:0:4:5:yticlabels(1) with xerrorbars pointtype 7 pointsize 0.4 linecolor "#222222", \
     data index 1 using 2:($0 - 0.42):(0):(0.84) with vectors nohead linewidth 3 linecolor "#d0342c"
