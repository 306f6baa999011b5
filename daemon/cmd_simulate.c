/* switchyard simulate: the node on node time: what the SN40L paper publishes, and traces. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/simulate_preset.h"
#include "daemon/simulate_trace.h"

enum { REQUESTS_MAX = 20000000 }; /* of one run; 70 bytes each */

struct arguments {
    const char *preset, *trace, *policy, *mode, *csv, *svg;
    struct cli_list chips;
    uint64_t hbm, expert_bytes, kv_token_bytes, experts, context, repeat, sequences, chunk, defer_ms;
    uint64_t prompt, router_tokens;
    double rate, speed, bits;
    bool json;
};

static void print_json(json_t *j)
{
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9));
    puts(text);
    free(text);
    json_decref(j);
}

static enum err_code write_file(const char *path, struct buf *text, struct err *e)
{
    enum err_code code = file_write_atomic(path, text->data, text->len, e);
    buf_done(text);
    return code;
}

/* ---- the preset ---- */

/* Every input that was taken from a published figure: chip, value, what it was taken from. */
static const struct {
    int chip;
    enum rdu_chip_field field;
    const char *from;
} calibrated[] = {
    {COE_NODE, RDU_CHIP_node_inference_fixed_s, "table_v.expert.bs1.20.a100"},
    {COE_A100, RDU_CHIP_efficiency_hbm_fused, "table_v.expert.bs1.200.a100"},
    {COE_H100, RDU_CHIP_efficiency_hbm_fused, "table_v.expert.bs1.200.h100"},
    {COE_NODE, RDU_CHIP_node_ddr_usable_share, "experts_per_node"},
    {COE_NODE, RDU_CHIP_launch_so_s, "fusion.bloom-176b.ho (at least 1.4) and fusion.mistral-7b.ho (at most 8)"},
};

static json_t *whole_or_real(double v)
{
    return v == floor(v) && fabs(v) < 1e15 ? json_integer((json_int_t)v) : json_real(v);
}

static void print_row_json(const struct coe *c, const struct coe_row *r)
{
    json_t *published = r->published_most > 0 ? json_pack("[f,f]", r->published, r->published_most)
                                              : whole_or_real(r->published);
    json_t *j = json_pack("{s:s,s:o,s:o,s:b,s:b,s:s,s:s}", "name", r->name, "published", published,
                          "modelled", whole_or_real(r->modelled), "calibrated", r->calibrated, "holds",
                          coe_row_holds(r), "mode", coe_mode_name(c->mode), "clock", "node");
    if (r->published_most == 0)
        json_object_set_new(j, "tolerance", json_real(r->tolerance));
    if (!isnan(r->left_out))
        json_object_set_new(j, "left_out_error", json_real(r->left_out));
    if (!isnan(r->exact))
        json_object_set_new(j, "exact", whole_or_real(r->exact));
    if (*r->note)
        json_object_set_new(j, "note", json_string(r->note));
    print_json(j);
}

static void print_inputs_json(struct coe *c)
{
    json_t *all = json_array();
    for (size_t i = 0; i < BASE_COUNT(calibrated); i++) {
        struct rdu_chip *chip = &c->chip[calibrated[i].chip];
        char name[96];
        snprintf(name, sizeof(name), "%s.%s", chip->name, rdu_chip_key(calibrated[i].field));
        json_array_append_new(all, json_pack("{s:s,s:f,s:s,s:s,s:s}", "name", name, "value",
                                             *rdu_chip_value(chip, calibrated[i].field), "source",
                                             chip->note[calibrated[i].field].from, "calibrated_on",
                                             calibrated[i].from, "file", chip->origin));
    }
    print_json(json_pack("{s:o,s:{s:i,s:i,s:i,s:s,s:s}}", "calibrated_inputs", all, "given", "experts",
                         (int)c->experts, "prompt_tokens", (int)c->prompt, "router_tokens",
                         (int)c->router_tokens, "choice", "uniform", "table_iii", COE_TABLE_III_GIVEN));
}

static void format_published(const struct coe_row *r, char *dst, size_t cap)
{
    if (r->published_most > 0)
        snprintf(dst, cap, "%g-%g", r->published, r->published_most);
    else
        snprintf(dst, cap, "%g", r->published);
}

static void print_row_text(const struct coe_row *r)
{
    char published[32], left[32] = "";
    format_published(r, published, sizeof(published));
    if (!isnan(r->left_out))
        snprintf(left, sizeof(left), "%+.2f", r->left_out);
    printf("%-34s %9s %9.*f  %-5s %-10s %6s  %s\n", r->name, published,
           r->modelled >= 100 || r->modelled == floor(r->modelled) ? 0 : 2, r->modelled,
           coe_row_holds(r) ? "yes" : "NO", r->calibrated ? "calibrated" : "", left, r->note);
}

/* How much the two inputs that are only taken as given decide: the eight overall cells of Table V. */
static double worst_overall(const struct coe *c)
{
    double worst = 0;
    for (int i = 0; i < COE_CELLS; i++)
        if (coe_cells[i].overall)
            worst = BASE_MAX(worst, fabs(coe_cell_ratio(c, &coe_cells[i]) - coe_cells[i].published));
    return worst;
}

static void print_sensitivity(const struct coe *c)
{
    static const uint32_t prompts[] = {50, 100, 200, 400, 800}, routers[] = {1, 10, 20, 30, 40};
    printf("\nLargest error of the eight overall cells of Table V, nothing else changed:\n  prompt tokens");
    for (size_t i = 0; i < BASE_COUNT(prompts); i++) {
        struct coe own = *c;
        own.prompt = prompts[i];
        printf("   %u: %.2f", prompts[i], worst_overall(&own));
    }
    printf("\n  router tokens");
    for (size_t i = 0; i < BASE_COUNT(routers); i++) {
        struct coe own = *c;
        own.router_tokens = routers[i];
        printf("   %u: %.2f", routers[i], worst_overall(&own));
    }
    printf("\n");
}

static void print_preset_head(const struct coe *c)
{
    printf("Samba-CoE (SN40L paper, arXiv 2405.07518) on node time: arithmetic on chip descriptions, nothing "
           "of this\nmachine's host time is in it.\n\n");
    for (int i = 0; i < COE_CHIPS; i++)
        printf("  %-10s %s (%s)\n", c->chip[i].name, c->chip[i].title, c->chip[i].origin);
    printf("\nTaken as given, not fitted: %u experts and a router of %s's shape (%.2f GB each), uniform choice, "
           "LRU,\nprompts of %u tokens, %u tokens from the router, mode %s. With 8 prompts %u experts stay in HBM "
           "on the\nnode, %u on a DGX. Table III: " COE_TABLE_III_GIVEN ".\n\n",
           c->experts, c->shape->name, rdu_shape_bytes(c->shape) / 1e9, c->prompt, c->router_tokens,
           coe_mode_name(c->mode), coe_resident(c, &c->chip[COE_NODE], c->prompt + 20, 8),
           coe_resident(c, &c->chip[COE_A100], c->prompt + 20, 8));
    if (c->mode != COE_PAPER)
        printf("The published figures are of paper mode: what differs below in Table V is what mode %s changes.\n\n",
               coe_mode_name(c->mode));
    printf("%-34s %9s %9s  %-5s %-10s %6s\n", "figure", "published", "modelled", "holds", "", "loo");
}

static void print_preset_text(struct coe *c, const struct coe_rows *rows)
{
    size_t holds = 0, predicted = 0, good = 0;
    print_preset_head(c);
    for (size_t i = 0; i < rows->count; i++) {
        print_row_text(&rows->rows[i]);
        holds += coe_row_holds(&rows->rows[i]);
        predicted += !rows->rows[i].calibrated;
        good += !rows->rows[i].calibrated && coe_row_holds(&rows->rows[i]);
    }
    printf("\n%zu of %zu figures hold; of the %zu that were not used to calibrate, %zu. loo: error of the cell when "
           "the\ninputs are fitted to the other eleven.\n\nCalibrated inputs:\n",
           holds, rows->count, predicted, good);
    for (size_t i = 0; i < BASE_COUNT(calibrated); i++) {
        struct rdu_chip *chip = &c->chip[calibrated[i].chip];
        printf("  %s.%s = %g, from %s\n", chip->name, rdu_chip_key(calibrated[i].field),
               *rdu_chip_value(chip, calibrated[i].field), calibrated[i].from);
    }
    bool use[COE_CELLS];
    double z[COE_INPUTS];
    for (int i = 0; i < COE_CELLS; i++)
        use[i] = coe_cells[i].calibrates;
    coe_fit(c, use, z);
    printf("With these chip files the three calibrating cells of Table V would ask for");
    for (int i = 0; i < COE_INPUTS; i++)
        printf("%s %s.%s = %.4g", i > 0 ? "," : "", c->chip[coe_input_chip[i]].name,
               rdu_chip_key(coe_input_field[i]), z[i]);
    printf(".\n");
    print_sensitivity(c);
}

static enum err_code write_sweeps(const struct coe *c, const struct arguments *a, struct err *e)
{
    struct buf text = {0};
    if (a->csv == NULL && a->svg == NULL)
        return ERR_OK;
    struct coe_sweep *s = mem_array(COE_SWEEPS, sizeof(*s));
    enum err_code code = coe_sweeps(c, s, e);
    if (code == ERR_OK && a->csv) {
        coe_sweeps_csv(s, &text);
        code = write_file(a->csv, &text, e);
    }
    if (code == ERR_OK && a->svg) {
        coe_sweeps_svg(s, &text);
        code = write_file(a->svg, &text, e);
    }
    free(s);
    return code;
}

static int run_preset(struct arguments *a)
{
    struct coe c;
    struct coe_rows rows = {0};
    struct err e = {0};
    if (strcmp(a->preset, "samba-coe") != 0)
        return cli_wrong("simulate", "there is no preset '%s'; known is samba-coe", a->preset);
    if (a->hbm || a->policy || a->rate > 0 || a->kv_token_bytes)
        return cli_wrong("simulate", "--hbm, --policy, --rate and --kv-bytes are for traces: the preset takes them from the chip and "
                                     "the paper; give a --chip with other values");
    enum err_code code = coe_init(&c, a->chips.items, a->chips.count, &e);
    if (a->mode && !coe_mode_parse(a->mode, &c.mode))
        return cli_wrong("simulate", "there is no mode '%s'; known are paper, grouped, prefetch and overlap",
                         a->mode);
    c.experts = a->experts ? (uint32_t)a->experts : c.experts;
    c.prompt = a->prompt ? (uint32_t)a->prompt : c.prompt;
    c.router_tokens = a->router_tokens ? (uint32_t)a->router_tokens : c.router_tokens;
    if (code == ERR_OK)
        code = coe_rows(&c, &rows, &e);
    if (code == ERR_OK && a->json) {
        for (size_t i = 0; i < rows.count; i++)
            print_row_json(&c, &rows.rows[i]);
        print_inputs_json(&c);
    } else if (code == ERR_OK) {
        print_preset_text(&c, &rows);
    }
    coe_rows_done(&rows);
    if (code == ERR_OK)
        code = write_sweeps(&c, a, &e);
    return code == ERR_OK ? CLI_DONE : cli_refuse("simulate", &e);
}

/* ---- traces ---- */

static void print_result_json(const char *policy, const struct sim_options *o,
                              const struct sim_trace_result *r)
{
    print_json(json_pack("{s:s,s:I,s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:I,s:I,s:I,s:I,s:f,s:s,s:s}",
                         "policy", policy, "hbm_bytes", (json_int_t)o->hbm_bytes, "requests",
                         (json_int_t)r->totals.requests, "miss_ratio", r->miss_ratio, "bytes_per_request",
                         r->bytes_per_request, "stall_ms_p50", r->stall_ms_p50, "stall_ms_p99",
                         r->stall_ms_p99, "belady_miss_ratio", r->belady_ratio, "wait_ms_p50",
                         r->wait_ms_p50, "wait_ms_p99", r->wait_ms_p99, "ttft_ms_p50", r->ttft_ms_p50,
                         "ttft_ms_p99", r->ttft_ms_p99, "experts", (json_int_t)o->experts, "expert_bytes",
                         (json_int_t)o->expert_bytes, "loads", (json_int_t)r->totals.loads, "evictions",
                         (json_int_t)r->totals.evictions, "node_s", r->node_s, "chip", o->chip->name,
                         "clock", "node"));
}

static void print_result_text(const char *policy, const struct sim_trace_result *r)
{
    printf("%-8s %9.4f %9.4f %12.2f %10.1f %10.1f %10.1f %10.1f %10.1f\n", policy, r->miss_ratio,
           r->belady_ratio, r->bytes_per_request / 1e6, r->stall_ms_p50, r->stall_ms_p99, r->wait_ms_p99,
           r->ttft_ms_p50, r->ttft_ms_p99);
}

static void print_trace_head(const struct arguments *a, const struct sim_trace *t,
                             const struct sim_options *o)
{
    char hbm[32], expert[32];
    printf("%s: %zu requests a round, %u experts of %s, pool %s (%.1f %% of them), loads at %.2f GB/s.\nAll times are "
           "node time of the chip %s (%s), not host time.\n\n"
           "%-8s %9s %9s %12s %10s %10s %10s %10s %10s\n%-8s %9s %9s %12s %10s %10s %10s %10s %10s\n",
           a->trace, t->count, o->experts, size_format(o->expert_bytes, expert, sizeof(expert)),
           size_format(o->hbm_bytes, hbm, sizeof(hbm)),
           100.0 * (double)o->hbm_bytes / ((double)o->expert_bytes * o->experts),
           (o->load_bytes_per_s > 0 ? o->load_bytes_per_s : o->chip->node_d2h_bytes_per_s) / 1e9,
           o->chip->name, o->chip->origin, "policy", "loads/", "bound", "MB/request", "stall p50", "stall p99",
           "lane p99", "first p50", "first p99", "", "request", "(Belady)", "", "ms", "ms", "ms", "ms", "ms");
}

static enum err_code run_policies(const struct arguments *a, const struct sim_trace *t,
                                  const struct sim_trace_options *how, struct sim_options *o, struct err *e)
{
    struct sim_trace_result r = {0};
    uint64_t start = clock_ns(), requests = 0;
    for (size_t i = 0; i < POOL_POLICIES; i++) {
        if (a->policy && strcmp(a->policy, "all") != 0 && strcmp(a->policy, sim_policies[i]) != 0)
            continue;
        o->policy = sim_policies[i];
        enum err_code code = sim_trace_run(t, how, o, &r, e);
        if (code != ERR_OK)
            return code;
        requests += r.totals.requests;
        if (a->json)
            print_result_json(o->policy, o, &r);
        else
            print_result_text(o->policy, &r);
    }
    double host_s = (double)(clock_ns() - start) * 1e-9;
    if (a->json)
        return ERR_OK;
    if (r.clipped > 0)
        printf("%zu requests were longer than %u tokens and were cut (--context).\n", r.clipped, how->context);
    printf("Simulated in %.2f s of host time: %.1f million requests a minute.\n", host_s,
           (double)requests / host_s * 60e-6);
    return ERR_OK;
}

static enum err_code write_pools(const struct arguments *a, const struct sim_trace *t,
                                 const struct sim_trace_options *how, const struct sim_options *o,
                                 struct err *e)
{
    struct buf text = {0};
    if (a->csv == NULL && a->svg == NULL)
        return ERR_OK;
    struct sim_pool_sweep *s = mem_alloc(sizeof(*s));
    enum err_code code = sim_pool_sweep(t, how, o, s, e);
    if (code == ERR_OK && a->csv) {
        sim_pool_csv(s, &text);
        code = write_file(a->csv, &text, e);
    }
    if (code == ERR_OK && a->svg) {
        const char *slash = strrchr(a->trace, '/');
        sim_pool_svg(s, slash ? slash + 1 : a->trace, &text);
        code = write_file(a->svg, &text, e);
    }
    free(s);
    return code;
}

/* As the engine by default: loads beside steps, steps that begin with the first layer, prefetch. */
static struct sim_options trace_options(const struct arguments *a, const struct rdu_chip *chip,
                                        const struct rdu_shape *shape, enum coe_mode mode)
{
    return (struct sim_options){.chip = chip,
                                .shape = shape,
                                .level = RDU_LEVEL_FUSED_HO,
                                .expert_bytes = a->expert_bytes,
                                .hbm_bytes = a->hbm,
                                .kv_token_bytes = a->kv_token_bytes,
                                .policy = "lru",
                                .load_bytes_per_s = a->rate * 1e9,
                                .lanes = mode == COE_PAPER ? 1 : (uint32_t)a->sequences,
                                .prefill_chunk = (uint32_t)a->chunk,
                                .max_defer_ns = a->defer_ms * 1000000,
                                .blocking_loads = mode < COE_PREFETCH,
                                .run_while_loading = mode == COE_OVERLAP,
                                .prefetch = mode >= COE_PREFETCH,
                                .hold = UINT32_MAX};
}

static int check_trace_arguments(const struct arguments *a, enum coe_mode *ret_mode)
{
    bool known = a->policy == NULL || strcmp(a->policy, "all") == 0;
    for (size_t i = 0; i < POOL_POLICIES; i++)
        known |= a->policy && strcmp(a->policy, sim_policies[i]) == 0;
    if (!known)
        return cli_wrong("simulate", "there is no policy '%s'; known are lru, gdsf, belady and all", a->policy);
    if (a->mode && !coe_mode_parse(a->mode, ret_mode))
        return cli_wrong("simulate", "there is no mode '%s'; known are paper, grouped, prefetch and overlap",
                         a->mode);
    if (a->chips.count > 1)
        return cli_wrong("simulate", "a trace runs on one chip: give --chip once");
    if (a->prompt || a->router_tokens)
        return cli_wrong("simulate", "--prompt and --router-tokens are for the preset: a trace says how long prompts are");
    if (a->expert_bytes == 0)
        return cli_wrong("simulate", "--expert-bytes must not be 0");
    return CLI_RUN;
}

static int run_trace(struct arguments *a)
{
    struct rdu_chip chip;
    struct sim_trace t = {0};
    struct sim_trace_options how = {.experts = (uint32_t)a->experts, .context = (uint32_t)a->context,
                                    .repeat = (uint32_t)a->repeat, .speed = a->speed};
    enum coe_mode mode = COE_OVERLAP;
    struct err e = {0};
    int exit = check_trace_arguments(a, &mode);
    if (exit != CLI_RUN)
        return exit;
    enum err_code code = rdu_chip_load(a->chips.count > 0 ? a->chips.items[0] : "sn40l", &chip, &e);
    if (code == ERR_OK)
        code = sim_trace_load(a->trace, &t, &e);
    if (code == ERR_OK && t.count * a->repeat > REQUESTS_MAX)
        code = err_set(&e, ERR_TOO_LARGE, "%zu rows, %llu times, are more than %d requests: lower --repeat", t.count,
                       (unsigned long long)a->repeat, REQUESTS_MAX);
    if (code != ERR_OK) {
        sim_trace_done(&t);
        return cli_refuse("simulate", &e);
    }
    struct rdu_shape shape = sim_shape_of_bytes(a->expert_bytes, a->bits);
    struct sim_options o = trace_options(a, &chip, &shape, mode);
    o.experts = how.experts > 0 ? how.experts : t.experts;
    if (o.hbm_bytes == 0)
        o.hbm_bytes = BASE_MAX(o.experts / 4, 1u) * o.expert_bytes;
    if (!a->json)
        print_trace_head(a, &t, &o);
    code = run_policies(a, &t, &how, &o, &e);
    if (code == ERR_OK)
        code = write_pools(a, &t, &how, &o, &e);
    sim_trace_done(&t);
    return code == ERR_OK ? CLI_DONE : cli_refuse("simulate", &e);
}

/* ---- the command ---- */

static const char about[] =
    "Runs the scheduler and the eviction policies of the daemon on node time: the time that the same steps and\n"
    "copies would take on a described chip. No model is needed, and the same input gives the same output.\n\n"
    "With --preset samba-coe it prints every figure that the SN40L paper publishes beside the modelled one, which\n"
    "inputs were calibrated on which figures, and what does not fit; --csv and --svg write sweeps over experts,\n"
    "batch, output, prompt, popularity and HBM. With --trace it replays requests against eviction policies; --csv\n"
    "and --svg write a sweep over sizes of the pool.";
static const char examples[] =
    "  switchyard simulate --preset samba-coe\n"
    "  switchyard simulate --preset samba-coe --mode overlap --svg samba-coe.svg\n"
    "  switchyard simulate --preset samba-coe --chip my-a100.yaml --json\n"
    "  switchyard simulate --trace trace.csv --hbm 3GiB --expert-bytes 100MiB --policy all --rate 1.05\n";

int cmd_simulate(int argc, char **argv)
{
    struct arguments a = {.expert_bytes = 100 << 20, .context = 4096, .repeat = 1, .sequences = 32,
                          .chunk = 256, .defer_ms = 500, .speed = 1, .bits = 5};
    const struct cli_option options[] = {
        {"preset", 0, CLI_TEXT, &a.preset, "NAME", "samba-coe: the SN40L paper's system and figures"},
        {"trace", 0, CLI_TEXT, &a.trace, "FILE", "CSV: arrival_ms,prompt_tokens,output_tokens,expert_rank"},
        {"chip", 0, CLI_LIST, &a.chips, "NAME|FILE",
         "chip description; the preset takes several: one named dgx-a100 or dgx-h100 replaces that"},
        {"mode", 0, CLI_TEXT, &a.mode, "MODE",
         "paper, grouped, prefetch or overlap (default: paper, traces overlap)"},
        {"experts", 0, CLI_UINT, &a.experts, "N", "number of experts (default 150, traces: as recorded)", 0, 100000},
        {"prompt", 0, CLI_UINT, &a.prompt, "N", "preset: tokens of a prompt (default 200)", 1, 1e6},
        {"router-tokens", 0, CLI_UINT, &a.router_tokens, "N", "preset: tokens the router writes (default 20)", 1, 1e5},
        {"hbm", 0, CLI_SIZE, &a.hbm, "SIZE", "traces: the pool (default: a quarter of all experts)"},
        {"policy", 'p', CLI_TEXT, &a.policy, "P", "traces: lru, gdsf, belady or all (default)"},
        {"expert-bytes", 0, CLI_SIZE, &a.expert_bytes, "SIZE", "traces: size of an expert (default 100MiB)"},
        {"kv-bytes", 0, CLI_SIZE, &a.kv_token_bytes, "SIZE", "traces: KV per token, out of the pool (default 0)"},
        {"weight-bits", 0, CLI_REAL, &a.bits, "N", "traces: bits per weight, for the operations (default 5)", 1, 32},
        {"rate", 0, CLI_REAL, &a.rate, "GB/s", "traces: rate of loads (default: the chip's)", 0.001, 1e6},
        {"sequences", 0, CLI_UINT, &a.sequences, "N", "traces: at once (default 32)", 1, SIM_LANES_MAX},
        {"prefill-chunk", 0, CLI_UINT, &a.chunk, "N", "traces: prompt tokens per step (default 256)", 1, 1e6},
        {"max-defer-ms", 0, CLI_UINT, &a.defer_ms, "N", "traces: as sched.max_defer_ms (default 500)", 0, 600000},
        {"context", 0, CLI_UINT, &a.context, "N", "traces: cut longer requests (default 4096, 0 = never)", 0, 1e9},
        {"speed", 0, CLI_REAL, &a.speed, "X", "traces: arrivals X times faster (default 1)", 1e-6, 1e6},
        {"repeat", 0, CLI_UINT, &a.repeat, "N", "traces: so many times in a row (default 1)", 1, 1e6},
        {"json", 0, CLI_FLAG, &a.json, NULL, "one JSON object per line"},
        {"csv", 0, CLI_TEXT, &a.csv, "FILE", "write the sweeps"},
        {"svg", 0, CLI_TEXT, &a.svg, "FILE", "draw the sweeps"},
        {0}};
    const struct cli_spec spec = {"simulate", "--preset NAME | --trace FILE", about, examples, options, 0, 0};
    int exit = cli_parse(argc, argv, &spec, NULL, NULL);
    if (exit == CLI_RUN && (a.preset == NULL) == (a.trace == NULL))
        exit = cli_wrong("simulate", "give either --preset samba-coe or --trace FILE");
    if (exit == CLI_RUN)
        exit = a.preset ? run_preset(&a) : run_trace(&a);
    cli_list_done(&a.chips);
    return exit;
}
