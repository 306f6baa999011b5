/* SVG by hand: a page of line charts needs a few dozen elements and no library. Every line has its own
 * colour and dashes, so that it can be told apart in grey. */
#include "daemon/simulate_plot.h"

#include <math.h>
#include <string.h>

enum { PANEL_W = 330, PANEL_H = 250, LEFT = 58, RIGHT = 12, TOP = 34, BOTTOM = 44, COLUMNS = 3,
       HEAD = 76, LEGEND_ROW = 18, TICKS_MAX = 12 };

static const char *const colours[PLOT_LINES_MAX] = {"#0072b2", "#56b4e9", "#009e73", "#003f5c", "#d55e00",
                                                    "#e69f00", "#cc79a7", "#7b3294", "#555555", "#000000"};
static const char *const dashes[PLOT_LINES_MAX] = {"", "6 3", "2 2", "8 2 2 2", "", "6 3", "", "6 3", "2 2", ""};

static void put_text(struct buf *out, double x, double y, const char *anchor, double size,
                     const char *more, const char *text)
{
    buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%.1f\"%s>", x, y, anchor,
               size, more);
    for (const char *c = text; *c; c++) {
        if (*c == '<' || *c == '&')
            buf_puts(out, *c == '<' ? "&lt;" : "&amp;");
        else
            buf_append(out, c, 1);
    }
    buf_puts(out, "</text>\n");
}

/* An axis maps values to [0, 1]. */
struct axis {
    double low, high;
    bool log;
    double tick[TICKS_MAX];
    size_t ticks;
};

static double place(const struct axis *a, double v)
{
    double low = a->log ? log10(a->low) : a->low, high = a->log ? log10(a->high) : a->high;
    return ((a->log ? log10(v) : v) - low) / (high - low);
}

static void log_ticks(struct axis *a)
{
    static const double steps[] = {1, 2, 5};
    bool fine = a->high / a->low < 200;
    for (double d = pow(10, floor(log10(a->low))); d <= a->high && a->ticks < TICKS_MAX; d *= 10)
        for (size_t i = 0; i < (fine ? 3 : 1) && a->ticks < TICKS_MAX; i++)
            if (d * steps[i] >= a->low * 0.999 && d * steps[i] <= a->high * 1.001)
                a->tick[a->ticks++] = d * steps[i];
}

static void even_ticks(struct axis *a)
{
    double raw = (a->high - a->low) / 5, size = pow(10, floor(log10(raw)));
    double step = raw / size < 1.5 ? size : raw / size < 3.5 ? 2 * size : raw / size < 7.5 ? 5 * size : 10 * size;
    for (double v = ceil(a->low / step) * step; v <= a->high + step / 1e3 && a->ticks < TICKS_MAX; v += step)
        a->tick[a->ticks++] = v;
}

/* Grows to take the values in; a logarithmic one leaves out what is not above 0. */
static void take_in(struct axis *a, const double *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (isnan(v[i]) || (a->log && v[i] <= 0))
            continue;
        a->low = BASE_MIN(a->low, v[i]);
        a->high = BASE_MAX(a->high, v[i]);
    }
}

static void close_axis(struct axis *a, bool roomy)
{
    if (a->low > a->high)
        a->low = a->log ? 1 : 0, a->high = a->log ? 10 : 1;
    if (roomy && !a->log)
        a->low = BASE_MIN(a->low, 0.0);
    if (a->high - a->low < 1e-12 * fabs(a->high) || a->high == a->low)
        a->high = a->high > 0 ? a->high * 1.1 : a->high + 1;
    if (roomy && a->log)
        a->low /= 1.15, a->high *= 1.15;
    (a->log ? log_ticks : even_ticks)(a);
}

struct panel {
    double x, y; /* of the upper left corner */
    struct axis h, v;
};

static double at_x(const struct panel *p, double v)
{
    return p->x + LEFT + place(&p->h, v) * (PANEL_W - LEFT - RIGHT);
}

static double at_y(const struct panel *p, double v)
{
    return p->y + PANEL_H - BOTTOM - place(&p->v, v) * (PANEL_H - TOP - BOTTOM);
}

static void put_grid(struct buf *out, const struct panel *p, const struct plot *plot)
{
    char text[32];
    double left = p->x + LEFT, right = p->x + PANEL_W - RIGHT;
    double top = p->y + TOP, bottom = p->y + PANEL_H - BOTTOM;
    for (size_t i = 0; i < p->v.ticks; i++) {
        double y = at_y(p, p->v.tick[i]);
        buf_printf(out, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/>\n", left, y, right);
        snprintf(text, sizeof(text), "%g", p->v.tick[i]);
        put_text(out, left - 5, y + 3.5, "end", 10, "", text);
    }
    for (size_t i = 0; i < p->h.ticks; i++) {
        double x = at_x(p, p->h.tick[i]);
        buf_printf(out, "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#eee\"/>\n", x, top, bottom);
        snprintf(text, sizeof(text), "%g", p->h.tick[i]);
        put_text(out, x, bottom + 14, "middle", 10, "", text);
    }
    buf_printf(out, "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#333\"/>\n", left, top, bottom,
               right);
    put_text(out, (left + right) / 2, bottom + 30, "middle", 11, "", plot->x_label);
    put_text(out, (left + right) / 2, p->y + TOP - 12, "middle", 13, " font-weight=\"bold\"", plot->title);
    char turn[80];
    snprintf(turn, sizeof(turn), " transform=\"rotate(-90 %.1f %.1f)\"", p->x + 14, (top + bottom) / 2);
    put_text(out, p->x + 14, (top + bottom) / 2, "middle", 11, turn, plot->y_label);
}

static void put_line(struct buf *out, const struct panel *p, const struct plot *plot, size_t line)
{
    bool pen = false;
    buf_puts(out, "<path d=\"");
    for (size_t i = 0; i < plot->count; i++) {
        double v = plot->y[line][i];
        if (isnan(v) || (p->v.log && v <= 0) || (p->h.log && plot->x[i] <= 0)) {
            pen = false;
            continue;
        }
        buf_printf(out, "%c%.1f %.1f", pen ? 'L' : 'M', at_x(p, plot->x[i]), at_y(p, v));
        pen = true;
    }
    buf_printf(out, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" stroke-dasharray=\"%s\"/>\n",
               colours[line], *dashes[line] ? dashes[line] : "none");
}

static void put_panel(struct buf *out, const struct plot *plot, double x, double y)
{
    struct panel p = {.x = x, .y = y,
                      .h = {.low = (double)INFINITY, .high = -(double)INFINITY, .log = plot->log_x},
                      .v = {.low = (double)INFINITY, .high = -(double)INFINITY, .log = plot->log_y}};
    take_in(&p.h, plot->x, plot->count);
    for (size_t i = 0; i < plot->lines; i++)
        take_in(&p.v, plot->y[i], plot->count);
    close_axis(&p.h, false);
    close_axis(&p.v, true);
    put_grid(out, &p, plot);
    for (size_t i = 0; i < plot->lines; i++)
        put_line(out, &p, plot, i);
}

static void put_legend(struct buf *out, const char *const *names, size_t count, double top)
{
    for (size_t i = 0; i < count; i++) {
        double x = 20 + (double)(i % 4) * 240, y = top + (double)(i / 4) * LEGEND_ROW;
        buf_printf(out,
                   "<path d=\"M%.1f %.1fh34\" stroke=\"%s\" stroke-width=\"2.2\" "
                   "stroke-dasharray=\"%s\"/>\n",
                   x, y - 4, colours[i], *dashes[i] ? dashes[i] : "none");
        put_text(out, x + 42, y, "start", 12, "", names[i]);
    }
}

void plot_page(const char *title, const char *note, const struct plot *plots, size_t count,
               const char *const *names, size_t names_count, struct buf *out)
{
    size_t rows = (count + COLUMNS - 1) / COLUMNS;
    double legend = (double)((names_count + 3) / 4) * LEGEND_ROW, width = COLUMNS * PANEL_W;
    double height = HEAD + legend + (double)rows * PANEL_H;
    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
               "height=\"%.0f\" font-family=\"sans-serif\">\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
               width, height, width, height);
    put_text(out, 20, 26, "start", 16, " font-weight=\"bold\"", title);
    put_text(out, 20, 46, "start", 11, " fill=\"#444\"", note);
    put_legend(out, names, names_count, HEAD - 6);
    for (size_t i = 0; i < count; i++)
        put_panel(out, &plots[i], (double)(i % COLUMNS) * PANEL_W,
                  HEAD + legend + (double)(i / COLUMNS) * PANEL_H);
    buf_puts(out, "</svg>\n");
}
