/* What the paper leaves out: the same batches over other numbers of experts, batch sizes, outputs,
 * prompts, popularities and sizes of HBM, for the node and for DGXs with one and with eight host links. */
#include <math.h>

#include "daemon/simulate_plot.h"
#include "daemon/simulate_preset.h"

const struct coe_series coe_series[] = {
    {"node, paper", COE_NODE, 1, COE_PAPER},
    {"node, grouped", COE_NODE, 1, COE_GROUPED},
    {"node, prefetch", COE_NODE, 1, COE_PREFETCH},
    {"node, overlap", COE_NODE, 1, COE_OVERLAP},
    {"A100, paper", COE_A100, 1, COE_PAPER},
    {"A100, 8 links", COE_A100, 8, COE_PAPER},
    {"H100, paper", COE_H100, 1, COE_PAPER},
    {"H100, 8 links, overlap", COE_H100, 8, COE_OVERLAP},
};
const size_t coe_series_count = BASE_COUNT(coe_series);

static const struct coe_sweep sweeps[COE_SWEEPS] = {
    {.name = "experts", .title = "number of experts", .x_label = "experts",
     .x = {10, 20, 30, 35, 40, 45, 50, 60, 80, 100, 125, 148, 150, 200, 300, 500, 850}, .count = 17,
     .log_x = true},
    {.name = "batch", .title = "prompts in a batch", .x_label = "prompts", .x = {1, 2, 4, 8, 16, 32, 64},
     .count = 7, .log_x = true},
    {.name = "output", .title = "output length", .x_label = "tokens",
     .x = {1, 5, 10, 20, 50, 100, 200, 400, 800}, .count = 9, .log_x = true},
    {.name = "prompt", .title = "prompt length", .x_label = "tokens",
     .x = {32, 64, 128, 200, 256, 512, 1024, 2048, 4096}, .count = 9, .log_x = true},
    {.name = "skew", .title = "popularity of experts", .x_label = "Zipf exponent",
     .x = {0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2}, .count = 11},
    {.name = "hbm", .title = "size of HBM", .x_label = "times the chip's",
     .x = {0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4}, .count = 8},
};

/* 148 experts are the most that a DGX's host memory holds: there everybody takes part. */
static struct coe_point point_at(const struct coe *c, int sweep, double x)
{
    struct coe_point p = {.experts = BASE_MIN(c->experts, coe_storable(c, &c->chip[COE_A100])),
                          .batch = 8, .prompt = c->prompt, .output = 20,
                          .router_tokens = c->router_tokens, .hbm_scale = 1};
    switch (sweep) {
    case 0: p.experts = (uint32_t)x; break;
    case 1: p.batch = (uint32_t)x; break;
    case 2: p.output = (uint32_t)x; break;
    case 3: p.prompt = (uint32_t)x; break;
    case 4: p.zipf = x; break;
    default: p.hbm_scale = x; break;
    }
    p.batches = BASE_MAX(2000 / p.batch, 40u);
    return p;
}

enum err_code coe_sweeps(const struct coe *c, struct coe_sweep ret[COE_SWEEPS], struct err *e)
{
    for (int i = 0; i < COE_SWEEPS; i++) {
        ret[i] = sweeps[i];
        for (size_t k = 0; k < coe_series_count; k++) {
            struct rdu_chip chip = c->chip[coe_series[k].chip];
            chip.node_d2h_bytes_per_s *= coe_series[k].links;
            for (size_t x = 0; x < ret[i].count; x++) {
                struct coe_point p = point_at(c, i, ret[i].x[x]);
                struct coe_result m;
                p.chip = &chip;
                p.mode = coe_series[k].mode;
                enum err_code code = coe_measure(c, &p, &m, e);
                if (code != ERR_OK)
                    return err_wrap(e, "%s = %g", ret[i].name, ret[i].x[x]);
                ret[i].batch_ms[k][x] = m.out_of_memory ? (double)NAN : m.batch_s * 1e3;
                ret[i].miss[k][x] = m.out_of_memory ? (double)NAN : m.miss_ratio;
            }
        }
    }
    return ERR_OK;
}

void coe_sweeps_csv(const struct coe_sweep *s, struct buf *out)
{
    buf_puts(out, "sweep,x,chip,links,mode,batch_node_ms,loads_per_prompt\n");
    for (int i = 0; i < COE_SWEEPS; i++) {
        for (size_t k = 0; k < coe_series_count; k++) {
            static const char *const chips[COE_CHIPS] = {"node", "dgx-a100", "dgx-h100"};
            const struct coe_series *v = &coe_series[k];
            for (size_t x = 0; x < s[i].count; x++) {
                buf_printf(out, "%s,%g,%s,%g,%s,", s[i].name, s[i].x[x], chips[v->chip], v->links,
                           coe_mode_name(v->mode));
                if (isnan(s[i].batch_ms[k][x]))
                    buf_puts(out, "out of memory,\n");
                else
                    buf_printf(out, "%.3f,%.4f\n", s[i].batch_ms[k][x], s[i].miss[k][x]);
            }
        }
    }
}

void coe_sweeps_svg(const struct coe_sweep *s, struct buf *out)
{
    struct plot plots[COE_SWEEPS];
    const char *names[BASE_COUNT(coe_series)];
    for (size_t k = 0; k < coe_series_count; k++)
        names[k] = coe_series[k].name;
    for (int i = 0; i < COE_SWEEPS; i++) {
        plots[i] = (struct plot){.title = s[i].title, .x_label = s[i].x_label,
                                 .y_label = "node time per batch, ms", .log_x = s[i].log_x, .log_y = true,
                                 .x = s[i].x, .count = s[i].count, .lines = coe_series_count};
        for (size_t k = 0; k < coe_series_count; k++)
            plots[i].y[k] = s[i].batch_ms[k];
    }
    plot_page("Samba-CoE: what the paper leaves out",
              "Node time, not host time. Unless swept: 148 experts, 8 prompts of 200 tokens, 20 out, uniform "
              "choice. A line ends where the experts no longer fit.",
              plots, COE_SWEEPS, names, coe_series_count, out);
}
