/* Traces: reading them, running them, and policies over sizes of the pool. */
#include "daemon/simulate_trace.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/simulate_plot.h"

enum { TRACE_BYTES_MAX = 1 << 30, COLUMNS_MAX = 16 };

/* ---- reading ---- */

enum column { COL_ARRIVAL, COL_PROMPT, COL_OUTPUT, COL_RANK, COLS, COL_OTHER = COLS };
static const char *const column_names[COLS] = {"arrival_ms", "prompt_tokens", "output_tokens",
                                               "expert_rank"};

struct reader {
    const char *shown, *at, *end;
    size_t line;
    enum column columns[COLUMNS_MAX];
    size_t columns_count;
};

/* The next line without its end, in [*ret, *ret + result); false at the end of the text. */
static bool next_line(struct reader *r, const char **ret, size_t *ret_len)
{
    if (r->at >= r->end)
        return false;
    const char *stop = memchr(r->at, '\n', (size_t)(r->end - r->at));
    size_t len = (size_t)((stop ? stop : r->end) - r->at);
    *ret = r->at;
    *ret_len = len > 0 && r->at[len - 1] == '\r' ? len - 1 : len;
    r->at += len + 1;
    r->line++;
    return true;
}

static size_t field_len(const char *at, const char *end)
{
    const char *comma = memchr(at, ',', (size_t)(end - at));
    return (size_t)((comma ? comma : end) - at);
}

static enum err_code read_header(struct reader *r, struct err *e)
{
    const char *line = "";
    size_t len = 0;
    unsigned seen = 0;
    (void)next_line(r, &line, &len);
    for (const char *at = line; at <= line + len && r->columns_count < COLUMNS_MAX;) {
        size_t n = field_len(at, line + len), c = 0;
        while (c < COLS && (strlen(column_names[c]) != n || memcmp(column_names[c], at, n) != 0))
            c++;
        r->columns[r->columns_count++] = (enum column)c;
        seen |= 1u << c;
        at += n + 1;
    }
    for (size_t c = 0; c < COLS; c++)
        if ((seen & 1u << c) == 0)
            return err_set(e, ERR_INVALID, "%s: line 1: no column '%s'; a trace begins with the line "
                           "arrival_ms,prompt_tokens,output_tokens,expert_rank", r->shown, column_names[c]);
    return ERR_OK;
}

static enum err_code read_number(const struct reader *r, enum column c, const char *at, size_t n,
                                 double *ret, struct err *e)
{
    static const double least[COLS] = {0, 0, 0, 1}, most[COLS] = {1e15, 1e9, 1e9, 1e6};
    char text[40] = "", *end = text;
    if (n > 0 && n < sizeof(text)) {
        memcpy(text, at, n);
        *ret = strtod(text, &end);
    }
    if (end == text || *end != 0 || !(*ret >= least[c] && *ret <= most[c]))
        return err_set(e, ERR_INVALID, "%s: line %zu: %s must be a number from %g to %g, not '%.*s'",
                       r->shown, r->line, column_names[c], least[c], most[c], (int)BASE_MIN(n, 30u), at);
    return ERR_OK;
}

static enum err_code read_row(struct reader *r, const char *line, size_t len, struct sim_trace_row *ret,
                              struct err *e)
{
    double v[COLS] = {0};
    const char *at = line;
    for (size_t i = 0; i < r->columns_count; i++) {
        if (at > line + len)
            return err_set(e, ERR_INVALID, "%s: line %zu: %zu columns, but the header has %zu", r->shown,
                           r->line, i, r->columns_count);
        size_t n = field_len(at, line + len);
        if (r->columns[i] != COL_OTHER) {
            enum err_code code = read_number(r, r->columns[i], at, n, &v[r->columns[i]], e);
            if (code != ERR_OK)
                return code;
        }
        at += n + 1;
    }
    *ret = (struct sim_trace_row){.arrival_ns = (uint64_t)llround(v[COL_ARRIVAL] * 1e6),
                                  .prompt = (uint32_t)v[COL_PROMPT],
                                  .output = (uint32_t)v[COL_OUTPUT],
                                  .rank = (uint32_t)v[COL_RANK] - 1};
    return ERR_OK;
}

enum err_code sim_trace_parse(const char *text, size_t len, const char *shown, struct sim_trace *ret,
                              struct err *e)
{
    struct reader r = {.shown = shown, .at = text, .end = text + len};
    struct sim_trace t = {0};
    size_t cap = 0, n;
    const char *line;
    enum err_code code = read_header(&r, e);
    while (code == ERR_OK && next_line(&r, &line, &n)) {
        if (n == 0)
            continue;
        if (t.count == cap) {
            cap = cap * 2 + 1024;
            t.rows = mem_grow(t.rows, cap, sizeof(*t.rows));
        }
        struct sim_trace_row *row = &t.rows[t.count];
        code = read_row(&r, line, n, row, e);
        if (code == ERR_OK && t.count > 0 && row->arrival_ns < row[-1].arrival_ns)
            code = err_set(e, ERR_INVALID, "%s: line %zu: arrives before the line above it; sort by "
                           "arrival_ms", shown, r.line);
        t.count++;
        t.experts = code == ERR_OK ? BASE_MAX(t.experts, row->rank + 1) : 0;
    }
    if (code == ERR_OK && t.count == 0)
        code = err_set(e, ERR_INVALID, "%s: the trace has no rows", shown);
    if (code == ERR_OK)
        *ret = t;
    else
        free(t.rows);
    return code;
}

enum err_code sim_trace_load(const char *path, struct sim_trace *ret, struct err *e)
{
    struct buf text = {0};
    enum err_code code = file_read(path, TRACE_BYTES_MAX, &text, e);
    if (code != ERR_OK)
        return err_wrap(e, "trace");
    code = sim_trace_parse(text.data ? text.data : "", text.len, path, ret, e);
    buf_done(&text);
    return code;
}

void sim_trace_done(struct sim_trace *t)
{
    free(t->rows);
    *t = (struct sim_trace){0};
}

/* ---- running ---- */

struct rdu_shape sim_shape_of_bytes(uint64_t bytes, double bits)
{
    enum { LAYERS = 32, HEAD = 64 };
    /* 12 width^2 weights a layer: attention 4, a gated MLP of 8/3 width 8. */
    double weights = (double)bytes * 8 / bits;
    double heads = BASE_MAX(round(sqrt(weights / (12 * LAYERS)) / HEAD), 1);
    struct rdu_shape s = {.name = "expert", .layers = LAYERS, .width = (uint32_t)heads * HEAD,
                          .heads = (uint32_t)heads, .kv_heads = (uint32_t)heads, .head_dim = HEAD,
                          .gated = true, .rotary = true, .weight_bytes = 1, .density = 1,
                          .sparse_share = 1};
    s.ffn = s.width * 8 / 3;
    s.weight_bytes = (double)bytes / rdu_shape_weights(&s);
    return s;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The smallest value that a share q of all does not exceed. */
static double quantile(const double *sorted, size_t n, double q)
{
    size_t at = (size_t)ceil(q * (double)n);
    return n == 0 ? 0 : sorted[at > 0 ? at - 1 : 0];
}

static void percentiles(const struct sim_request *r, size_t n, uint64_t (*of)(const struct sim_request *),
                        double *ret_p50, double *ret_p99)
{
    double *v = mem_array(n + 1, sizeof(*v));
    for (size_t i = 0; i < n; i++)
        v[i] = (double)of(&r[i]) * 1e-6;
    qsort(v, n, sizeof(*v), by_size);
    *ret_p50 = quantile(v, n, 0.5);
    *ret_p99 = quantile(v, n, 0.99);
    free(v);
}

static uint64_t stall_of(const struct sim_request *r)
{
    return r->stall_ns;
}
static uint64_t wait_of(const struct sim_request *r)
{
    return r->admitted_ns - r->arrival_ns;
}
static uint64_t ttft_of(const struct sim_request *r)
{
    return r->first_ns - r->arrival_ns;
}

static size_t submit_all(struct sim *s, const struct sim_trace *t, const struct sim_trace_options *how,
                         uint32_t experts)
{
    size_t clipped = 0;
    double speed = how->speed > 0 ? how->speed : 1;
    uint64_t span = t->rows[t->count - 1].arrival_ns + 1000000;
    for (uint64_t k = 0; k < BASE_MAX(how->repeat, 1u); k++) {
        for (size_t i = 0; i < t->count; i++) {
            const struct sim_trace_row *row = &t->rows[i];
            uint32_t prompt = row->prompt, output = row->output;
            if (how->context > 0 && (uint64_t)prompt + output > how->context) {
                clipped++;
                output = BASE_MIN(output, how->context / 2);
                prompt = BASE_MIN(prompt, how->context - output);
            }
            double at = (double)(row->arrival_ns + k * span) / speed;
            sim_submit(s, &(struct sim_request){.arrival_ns = (uint64_t)llround(at),
                                                .expert = row->rank % experts, .prompt = prompt,
                                                .output = output});
        }
    }
    return clipped;
}

static void summarise(const struct sim *s, struct sim_trace_result *ret)
{
    size_t n;
    const struct sim_request *r = sim_requests(s, &n);
    sim_totals(s, &ret->totals);
    ret->miss_ratio = (double)ret->totals.loads / (double)n;
    ret->belady_ratio = (double)ret->totals.belady_loads / (double)n;
    ret->bytes_per_request = (double)ret->totals.load_bytes / (double)n;
    percentiles(r, n, stall_of, &ret->stall_ms_p50, &ret->stall_ms_p99);
    percentiles(r, n, wait_of, &ret->wait_ms_p50, &ret->wait_ms_p99);
    percentiles(r, n, ttft_of, &ret->ttft_ms_p50, &ret->ttft_ms_p99);
    ret->node_s = (double)sim_now(s) * 1e-9;
}

enum err_code sim_trace_run(const struct sim_trace *t, const struct sim_trace_options *how,
                            const struct sim_options *opt, struct sim_trace_result *ret, struct err *e)
{
    struct sim_options own = *opt;
    struct sim *s = NULL;
    *ret = (struct sim_trace_result){0};
    own.experts = how->experts > 0 ? how->experts : t->experts;
    enum err_code code = sim_open(&own, &s, e);
    if (code != ERR_OK)
        return code;
    ret->clipped = submit_all(s, t, how, own.experts);
    code = sim_run(s, NULL, NULL, e);
    if (code == ERR_OK)
        summarise(s, ret);
    sim_close(&s);
    return code;
}

/* ---- policies over sizes of the pool ---- */

const char *const sim_policies[POOL_POLICIES] = {"lru", "gdsf", "belady"};

enum err_code sim_pool_sweep(const struct sim_trace *t, const struct sim_trace_options *how,
                             const struct sim_options *opt, struct sim_pool_sweep *ret, struct err *e)
{
    static const double shares[POOL_POINTS] = {0.05, 0.075, 0.1, 0.125, 0.15, 0.2,
                                               0.25, 0.35, 0.5,   0.65, 0.8, 1};
    struct sim_options own = *opt;
    uint32_t experts = how->experts > 0 ? how->experts : t->experts;
    ret->count = 0;
    for (size_t i = 0; i < POOL_POINTS; i++) {
        uint64_t places = (uint64_t)round(shares[i] * experts);
        if (places == 0 || (ret->count > 0 && places * opt->expert_bytes == ret->hbm_bytes[ret->count - 1]))
            continue;
        size_t at = ret->count++;
        ret->share[at] = (double)places / experts;
        own.hbm_bytes = ret->hbm_bytes[at] = places * opt->expert_bytes;
        for (size_t p = 0; p < POOL_POLICIES; p++) {
            own.policy = sim_policies[p];
            enum err_code code = sim_trace_run(t, how, &own, &ret->at[p][at], e);
            if (code != ERR_OK)
                return code;
        }
    }
    return ERR_OK;
}

void sim_pool_csv(const struct sim_pool_sweep *s, struct buf *out)
{
    buf_puts(out, "policy,hbm_bytes,pool_share,requests,miss_ratio,belady_miss_ratio,bytes_per_request,"
                  "stall_node_ms_p50,stall_node_ms_p99,ttft_node_ms_p50,ttft_node_ms_p99\n");
    for (size_t p = 0; p < POOL_POLICIES; p++) {
        for (size_t i = 0; i < s->count; i++) {
            const struct sim_trace_result *r = &s->at[p][i];
            buf_printf(out, "%s,%llu,%.4f,%llu,%.6f,%.6f,%.0f,%.3f,%.3f,%.3f,%.3f\n", sim_policies[p],
                       (unsigned long long)s->hbm_bytes[i], s->share[i],
                       (unsigned long long)r->totals.requests, r->miss_ratio, r->belady_ratio,
                       r->bytes_per_request, r->stall_ms_p50, r->stall_ms_p99, r->ttft_ms_p50,
                       r->ttft_ms_p99);
        }
    }
}

void sim_pool_svg(const struct sim_pool_sweep *s, const char *title, struct buf *out)
{
    static const char *const names[] = {"lru", "gdsf", "belady", "bound (Belady, of lru's order)"};
    static const char *const titles[] = {"loads per request", "bytes per request", "stall p99",
                                         "first token p50", "first token p99"};
    static const char *const labels[] = {"loads", "MB", "node time, ms", "node time, ms", "node time, ms"};
    double y[BASE_COUNT(titles)][POOL_POLICIES + 1][POOL_POINTS];
    struct plot plots[BASE_COUNT(titles)];
    for (size_t k = 0; k < BASE_COUNT(titles); k++) {
        plots[k] = (struct plot){.title = titles[k], .x_label = "pool, share of all experts' bytes",
                                 .y_label = labels[k], .x = s->share, .count = s->count,
                                 .lines = k == 0 ? POOL_POLICIES + 1 : POOL_POLICIES};
        for (size_t p = 0; p < plots[k].lines; p++) {
            plots[k].y[p] = y[k][p];
            for (size_t i = 0; i < s->count; i++) {
                const struct sim_trace_result *r = &s->at[p < POOL_POLICIES ? p : 0][i];
                const double v[] = {p < POOL_POLICIES ? r->miss_ratio : r->belady_ratio,
                                    r->bytes_per_request / 1e6, r->stall_ms_p99, r->ttft_ms_p50,
                                    r->ttft_ms_p99};
                y[k][p][i] = v[k];
            }
        }
    }
    plot_page(title, "Node time, not host time.", plots, BASE_COUNT(titles), names, BASE_COUNT(names), out);
}
