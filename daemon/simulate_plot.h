/* Line charts as SVG text, several to a page. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_SIMULATE_PLOT_H
#define SWITCHYARD_DAEMON_SIMULATE_PLOT_H

#include "base/base.h"

enum { PLOT_LINES_MAX = 10 };
struct plot {
    const char *title, *x_label, *y_label;
    bool log_x, log_y;
    const double *x;
    size_t count;
    const double *y[PLOT_LINES_MAX]; /* [count] each; NAN leaves a gap */
    size_t lines;
};
/* A page of panels, three in a row, with one legend for all: names[i] is line i of every panel. */
void plot_page(const char *title, const char *note, const struct plot *plots, size_t count,
               const char *const *names, size_t names_count, struct buf *out);

#endif
