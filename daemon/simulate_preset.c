/* The preset samba-coe: the event loop fed with batches, and every published figure as a row. */
#include "daemon/simulate_preset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const mode_names[] = {"paper", "grouped", "prefetch", "overlap"};

const char *coe_mode_name(enum coe_mode m)
{
    return mode_names[m];
}

bool coe_mode_parse(const char *name, enum coe_mode *ret)
{
    for (size_t i = 0; i < COE_MODES; i++) {
        if (strcmp(name, mode_names[i]) != 0)
            continue;
        *ret = (enum coe_mode)i;
        return true;
    }
    return false;
}

enum err_code coe_init(struct coe *c, const char *const *files, size_t files_count, struct err *e)
{
    static const char *const names[COE_CHIPS] = {"sn40l", "dgx-a100", "dgx-h100"};
    /* 150 experts are the paper's. It does not say how long prompts are, nor what the router writes: 200
     * tokens, and as many as the shorter of the two workloads. Neither is fitted. 40,000 prompts are so
     * many that the experts, which are drawn, move no ratio by more than 0.02. */
    *c = (struct coe){.shape = rdu_shape_find("llama2-7b"), .mode = COE_PAPER, .experts = 150,
                      .prompt = 200, .router_tokens = 20, .measured = 40000};
    for (int i = 0; i < COE_CHIPS; i++) {
        enum err_code code = rdu_chip_load(names[i], &c->chip[i], e);
        if (code != ERR_OK)
            return code;
    }
    for (size_t i = 0; i < files_count; i++) {
        struct rdu_chip chip;
        enum err_code code = rdu_chip_load(files[i], &chip, e);
        if (code != ERR_OK)
            return code;
        int at = COE_NODE;
        for (int k = COE_A100; k < COE_CHIPS; k++)
            at = strcmp(chip.name, names[k]) == 0 ? k : at;
        c->chip[at] = chip;
    }
    return ERR_OK;
}

/* ---- capacities ---- */

static double hbm_bytes(const struct rdu_chip *chip)
{
    return chip->socket_hbm_bytes * chip->node_sockets;
}

uint32_t coe_resident(const struct coe *c, const struct rdu_chip *chip, double tokens, double batch)
{
    double expert = rdu_shape_bytes(c->shape);
    double room = hbm_bytes(chip) - expert - batch * tokens * rdu_shape_kv_bytes(c->shape);
    return room < 0 ? 0 : (uint32_t)BASE_MIN(floor(room / expert), 1e6);
}

uint32_t coe_storable(const struct coe *c, const struct rdu_chip *chip)
{
    double bytes = chip->socket_ddr_bytes * chip->node_sockets * chip->node_ddr_usable_share;
    return (uint32_t)BASE_MIN(floor(bytes / rdu_shape_bytes(c->shape)), 1e6);
}

/* ---- batches through the event loop ---- */

struct feed {
    const struct coe_point *p;
    struct rng rng;
    double *reach;        /* [experts] cumulative popularity */
    uint32_t *chosen;     /* [batch] experts of the batch */
    uint32_t asked, routed, started, ended; /* within the batch */
    uint32_t batch, warm; /* batches begun; those before `warm` are not counted */
    uint64_t start_ns, sum_ns;
    uint64_t loads_before;
};

static double *popularity(uint32_t experts, double zipf)
{
    double *reach = mem_array(experts, sizeof(*reach)), sum = 0;
    for (uint32_t i = 0; i < experts; i++)
        reach[i] = sum += pow(i + 1, -zipf);
    for (uint32_t i = 0; i < experts; i++)
        reach[i] /= sum;
    return reach;
}

static uint32_t draw(struct feed *f)
{
    double u = rng_f64(&f->rng);
    uint32_t low = 0, high = f->p->experts - 1;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (f->reach[mid] < u)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

enum { TAG_ROUTER, TAG_EXPERT };

static void begin_batch(struct feed *f, struct sim *s)
{
    struct sim_totals t;
    if (f->batch == f->warm) {
        sim_totals(s, &t);
        f->loads_before = t.loads;
    }
    f->batch++;
    f->routed = f->started = f->ended = 0;
    f->start_ns = sim_now(s);
    for (uint32_t i = 0; i < f->p->batch; i++) {
        f->chosen[i] = draw(f);
        sim_submit(s, &(struct sim_request){.arrival_ns = f->start_ns, .expert = f->p->experts,
                                            .prompt = f->p->prompt, .output = f->p->router_tokens,
                                            .tag = TAG_ROUTER});
    }
}

static void begin_expert(struct feed *f, struct sim *s)
{
    sim_submit(s, &(struct sim_request){.arrival_ns = sim_now(s), .expert = f->chosen[f->started++],
                                        .prompt = f->p->prompt, .output = f->p->output,
                                        .tag = TAG_EXPERT});
}

/* The router decides for the whole batch; then the prompts run, in paper mode one by one. */
static void on_done(void *ctx, struct sim *s, const struct sim_request *r)
{
    struct feed *f = ctx;
    uint32_t ahead = f->p->mode == COE_PAPER ? 1 : f->p->batch;
    if (r->tag == TAG_ROUTER)
        f->routed++;
    else
        f->ended++;
    if (f->routed < f->p->batch)
        return;
    while (f->started < f->p->batch && f->started - f->ended < ahead)
        begin_expert(f, s);
    if (f->ended < f->p->batch)
        return;
    if (f->batch > f->warm)
        f->sum_ns += sim_now(s) - f->start_ns;
    if (f->batch < f->warm + f->p->batches)
        begin_batch(f, s);
}

static struct sim_options options_of(const struct coe *c, const struct coe_point *p)
{
    return (struct sim_options){.chip = p->chip,
                                .shape = c->shape,
                                .level = RDU_LEVEL_LOOPED,
                                .experts = p->experts + 1, /* the router is the last one */
                                .expert_bytes = (uint64_t)rdu_shape_bytes(c->shape),
                                .hbm_bytes = (uint64_t)(hbm_bytes(p->chip) * p->hbm_scale),
                                .kv_token_bytes = (uint64_t)rdu_shape_kv_bytes(c->shape),
                                .policy = "lru",
                                .lanes = p->batch,
                                .prefill_chunk = 1u << 30, /* a prompt is one pass */
                                .max_defer_ns = 1000000000000000, /* the paper bounds no wait */
                                .blocking_loads = p->mode < COE_PREFETCH,
                                .run_while_loading = p->mode == COE_OVERLAP,
                                .hold = p->experts};
}

enum err_code coe_measure(const struct coe *c, const struct coe_point *p, struct coe_result *ret,
                          struct err *e)
{
    struct sim *s = NULL;
    struct sim_options opt = options_of(c, p);
    *ret = (struct coe_result){.out_of_memory = p->experts > coe_storable(c, p->chip)};
    if (ret->out_of_memory)
        return ERR_OK;
    enum err_code code = sim_open(&opt, &s, e);
    if (code != ERR_OK)
        return code;
    struct feed f = {.p = p,
                     .reach = popularity(p->experts, p->zipf),
                     .chosen = mem_array(p->batch, sizeof(uint32_t)),
                     /* Until what HBM holds has come by several times. */
                     .warm = 8 * BASE_MIN(p->experts, 64u) / p->batch + 1};
    rng_init(&f.rng, 40518 + p->experts);
    begin_batch(&f, s);
    code = sim_run(s, on_done, &f, e);
    if (code == ERR_OK) {
        struct sim_totals t;
        sim_totals(s, &t);
        ret->batch_s = (double)f.sum_ns * 1e-9 / p->batches;
        ret->miss_ratio = (double)(t.loads - f.loads_before) / ((double)p->batches * p->batch);
    }
    free(f.reach);
    free(f.chosen);
    sim_close(&s);
    return code;
}

/* ---- rows ---- */

static struct coe_row *add_row(struct coe_rows *r, const char *name, double published, double modelled,
                               double tolerance)
{
    r->rows = mem_grow(r->rows, r->count + 1, sizeof(*r->rows));
    struct coe_row *row = &r->rows[r->count++];
    *row = (struct coe_row){.published = published, .modelled = modelled, .tolerance = tolerance,
                            .left_out = (double)NAN, .exact = (double)NAN, .note = ""};
    snprintf(row->name, sizeof(row->name), "%s", name);
    return row;
}

static struct coe_row *add_range(struct coe_rows *r, const char *workload, const char *what,
                                 double least, double most, double modelled)
{
    char name[sizeof(r->rows->name)];
    snprintf(name, sizeof(name), "fusion.%s.%s", workload, what);
    struct coe_row *row = add_row(r, name, least, modelled, 0);
    row->published_most = most;
    return row;
}

bool coe_row_holds(const struct coe_row *r)
{
    if (r->published_most > 0)
        return r->modelled >= r->published && r->modelled <= r->published_most;
    return fabs(r->modelled - r->published) <= r->tolerance;
}

void coe_rows_done(struct coe_rows *r)
{
    free(r->rows);
    *r = (struct coe_rows){0};
}

static double tens(double v)
{
    return 10 * ceil(v / 10);
}

static void add_arithmetic(const struct coe *c, struct coe_rows *r)
{
    double bytes = rdu_shape_bytes(c->shape), node = rdu_time_switch_s(&c->chip[COE_NODE], bytes);
    uint32_t resident = coe_resident(c, &c->chip[COE_A100], c->prompt + 20, 8);
    uint32_t per_node = coe_storable(c, &c->chip[COE_NODE]);
    add_row(r, "switch.a100", 31, rdu_time_switch_s(&c->chip[COE_A100], bytes) / node, 0.7);
    add_row(r, "switch.h100", 15, rdu_time_switch_s(&c->chip[COE_H100], bytes) / node, 0.7)->note =
        "the text once says 16";
    struct coe_row *row = add_row(r, "knee.experts", 50, tens(resident + 1), 3);
    row->exact = resident + 1;
    row->note = "first count, by tens as published, whose weights leave the DGX's HBM";
    double storable = coe_storable(c, &c->chip[COE_A100]);
    row = add_row(r, "oom.experts", 150, tens(storable + 1), 0.5);
    row->exact = storable + 1;
    row->note = "first count, by tens as published, that the DGX's host memory does not hold";
    row = add_row(r, "experts_per_node", 850, per_node, 0.5);
    row->calibrated = true;
    row->note = "the usable share of DDR is taken from this figure";
    add_row(r, "dgx_nodes", 19, ceil((double)per_node / BASE_MAX(resident, 1u)), 0.5);
}

static enum err_code overall_s(const struct coe *c, int chip, const struct coe_cell *cell, double *ret,
                               struct err *e)
{
    struct coe_point p = {.chip = &c->chip[chip], .mode = c->mode, .experts = c->experts,
                          .batch = cell->batch, .prompt = c->prompt, .output = cell->output,
                          .router_tokens = c->router_tokens, .batches = c->measured / cell->batch,
                          .hbm_scale = 1};
    struct coe_result m;
    enum err_code code = coe_measure(c, &p, &m, e);
    /* Table V compares at a size where the DGX just holds the experts; the row for that is oom. */
    if (code == ERR_OK && m.out_of_memory) {
        struct coe roomy = *c;
        roomy.chip[chip].node_ddr_usable_share = 1e3;
        p.chip = &roomy.chip[chip];
        code = coe_measure(&roomy, &p, &m, e);
    }
    *ret = m.batch_s;
    return code;
}

static enum err_code add_table_v(const struct coe *c, struct coe_rows *r, struct err *e)
{
    double left_out[COE_CELLS], time[COE_CHIPS] = {0};
    coe_leave_one_out(c, left_out);
    for (int i = 0; i < COE_CELLS; i++) {
        const struct coe_cell *cell = &coe_cells[i];
        double ratio = coe_cell_ratio(c, cell);
        if (cell->overall) {
            enum err_code code = ERR_OK;
            /* Cells come in pairs that share the node's side. */
            if (cell->against == COE_A100)
                code = overall_s(c, COE_NODE, cell, &time[COE_NODE], e);
            if (code == ERR_OK)
                code = overall_s(c, cell->against, cell, &time[cell->against], e);
            if (code != ERR_OK)
                return err_wrap(e, "%s", cell->name);
            ratio = time[cell->against] / time[COE_NODE];
        }
        struct coe_row *row = add_row(r, cell->name, cell->published, ratio, 0.12);
        row->calibrated = cell->calibrates;
        row->left_out = left_out[i];
    }
    return ERR_OK;
}

/* Table III. Batches are not published: inputs taken as given, large enough for a prefill to be worth
 * eight sockets, and such that KV and weights fit HBM. Decoding is of one sequence. */
static const struct workload {
    const char *name, *shape;
    double context, prefill_seqs;
    bool train_only;
    bool bounds_launch; /* its HO row bounds the cost of a launch, which is taken from there */
} workloads[] = {
    {"llama2-7b", "llama2-7b", 4096, 64, false, false},
    {"llama2-70b", "llama2-70b", 4096, 64, false, false},
    {"mistral-7b", "mistral-7b", 4096, 64, false, true},
    {"mistral-7b-2k", "mistral-7b", 2048, 64, false, false},
    {"falcon-40b", "falcon-40b", 2048, 64, false, false},
    {"bloom-176b", "bloom-176b", 8192, 4, false, true},
    {"sparsegpt-13b", "sparsegpt-13b", 2048, 64, true, false},
    {"llava-1.5-7b", "llava-1.5-7b", 4096, 64, false, false},
};

struct speeds {
    double fusion, ho, launches;
};

static struct speeds speeds_of(const struct rdu_clock t[3])
{
    return (struct speeds){rdu_clock_seconds(&t[0]) / rdu_clock_seconds(&t[1]),
                           rdu_clock_seconds(&t[1]) / rdu_clock_seconds(&t[2]),
                           (double)t[0].launches / (double)t[1].launches};
}

static struct speeds compare(const struct rdu_chip *chip, const struct rdu_shape *s,
                             const struct rdu_pass *p)
{
    struct rdu_clock t[3];
    for (int level = RDU_LEVEL_UNFUSED; level <= RDU_LEVEL_FUSED_HO; level++)
        rdu_time_pass(chip, s, p, (enum rdu_level)level, &t[level]);
    return speeds_of(t);
}

static void add_training(const struct rdu_chip *chip, const struct workload *w, struct coe_rows *r,
                         bool only)
{
    struct rdu_pass p = rdu_pass_prefill(64, w->context);
    p.train = true;
    struct speeds v = compare(chip, rdu_shape_find(w->shape), &p);
    add_range(r, w->name, only ? "prefill" : "train", 1.5, 3, v.fusion)->note =
        only ? "a training step: the only phase of it that is published" : "";
    if (only)
        add_range(r, w->name, "ho", 1, 1.1, v.ho)->note = "of a training step";
}

static void add_fft(const struct rdu_chip *chip, struct coe_rows *r)
{
    static const uint32_t factor[3] = {128, 128, 64}; /* 1 M points */
    struct rdu_clock t[3];
    for (int level = RDU_LEVEL_UNFUSED; level <= RDU_LEVEL_FUSED_HO; level++)
        rdu_time_monarch(chip, factor, 512, (enum rdu_level)level, &t[level]);
    struct speeds v = speeds_of(t);
    add_row(r, "fusion.flashfftconv.prefill", 13, v.fusion, 2)->note = "one pass, on one socket";
    add_row(r, "fusion.flashfftconv.ho", 1, v.ho, 0.05)->note = "one kernel";
}

static void add_fusion(const struct coe *c, struct coe_rows *r)
{
    const struct rdu_chip *chip = &c->chip[COE_NODE];
    for (size_t i = 0; i < BASE_COUNT(workloads); i++) {
        const struct workload *w = &workloads[i];
        const struct rdu_shape *s = rdu_shape_find(w->shape);
        struct rdu_pass prefill = rdu_pass_prefill(w->prefill_seqs, w->context);
        struct rdu_pass decode = rdu_pass_decode(1, w->context);
        if (w->train_only) {
            add_training(chip, w, r, true);
            continue;
        }
        struct speeds v = compare(chip, s, &prefill), d = compare(chip, s, &decode);
        add_range(r, w->name, "prefill", 1.5, 3, v.fusion);
        add_range(r, w->name, "prefill_ho", 1, 1.1, v.ho);
        add_range(r, w->name, "decode", 1, 13, d.fusion);
        struct coe_row *ho = add_range(r, w->name, "ho", 1.4, 8, d.ho);
        ho->calibrated = w->bounds_launch;
        ho->note = w->bounds_launch ? "an end of this range bounds launch.so_s" : "";
        if (i == 0) {
            add_training(chip, w, r, false);
            add_row(r, "launches.llama2-7b.prefill", 11, v.launches, 11 * 0.15);
        }
    }
    add_fft(chip, r);
}

enum err_code coe_rows(const struct coe *c, struct coe_rows *ret, struct err *e)
{
    *ret = (struct coe_rows){0};
    add_arithmetic(c, ret);
    enum err_code code = add_table_v(c, ret, e);
    if (code != ERR_OK) {
        coe_rows_done(ret);
        return code;
    }
    add_fusion(c, ret);
    return ERR_OK;
}
