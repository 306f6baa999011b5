/* rdu_program_open: verify -> simplify -> (fuse -> buffers -> place), and what others ask a
 * program. */
#include <stdlib.h>
#include <string.h>

#include "rdu/opt/opt.h"

const char *rdu_kernel_name(enum rdu_kernel k)
{
    static const char *const name[RDU_KERNELS] = {
        "embed",       "norm",   "quantize",  "matmul", "gate_up",  "act",   "rope",
        "rope_append", "append", "attention", "add",    "add_bias", "scale", "softcap",
        "take_outs",   "center", "mean_pool", "head",   "loop"};
    return (unsigned)k < RDU_KERNELS ? name[k] : "?";
}

static const char *const section_name[RDU_SECTIONS] = {"embed", "layer", "head"};

/* ---- open ------------------------------------------------------------------------------------ */

static enum err_code check_options(const struct rdu_graph *g, const struct rdu_program_options *o,
                                   struct err *e)
{
    if ((unsigned)o->exec > RDU_EXEC_NATIVE)
        return err_set(e, ERR_INVALID, "graph %s: execution level %d does not exist", g->name,
                       (int)o->exec);
    if (o->sockets < 1 || o->sockets > 16)
        return err_set(e, ERR_INVALID, "graph %s: %u sockets, must be 1 to 16", g->name,
                       o->sockets);
    return ERR_OK;
}

static void report_simplify(struct rdu_program *p)
{
    const struct ir_counts *c = &p->graph->counts;
    buf_printf(&p->report,
               "simplify: %u -> %u nodes, %u -> %u scalar operations; %u folded, %u moved out of "
               "reduces, %u unused, %u copies forwarded, %u loops only for wanted outputs\n",
               c->nodes_before, c->nodes_after, c->ops_before, c->ops_after, c->body.folded,
               c->body.moved, c->body.removed, c->copies, c->hoisted);
}

/* Buffers that row-wise launches make from x alone: each host thread computes its own copy in small
 * steps (node/run.c, is_broadcast). An interpreted Loop reads the shared arena only. */
static void find_local(struct rdu_section_plan *s)
{
    for (uint32_t i = 0; i < s->count; i++) {
        if (s->launches[i].kernel == RDU_KERNEL_LOOP)
            return;
    }
    for (uint32_t i = 0; i < s->count; i++) {
        const struct rdu_launch *l = &s->launches[i];
        uint32_t in = l->in[0];
        bool row_wise = l->kernel == RDU_KERNEL_NORM || l->kernel == RDU_KERNEL_QUANTIZE ||
                        l->kernel == RDU_KERNEL_TAKE_OUTS;
        bool own =
            row_wise && (in == RDU_BUF_X || (in < 256 && s->local_bits[in / 64] >> (in % 64) & 1));
        for (int k = 0; own && k < 2; k++) {
            if (l->out[k] < 256)
                s->local_bits[l->out[k] / 64] |= (uint64_t)1 << (l->out[k] % 64);
        }
    }
}

/* Weights of a layer, and tables by number: what native code asks for. */
static void note_for_native(struct rdu_program *p)
{
    const struct rdu_graph *g = p->graph;
    for (uint32_t i = 0; i < p->layer_slots.count; i++)
        p->layer_weights += (uint64_t)p->layer_slots.slots[i].rows * p->layer_slots.slots[i].cols;
    p->tables = mem_array(BASE_MAX(g->tables_count, 1u), sizeof(*p->tables));
    for (uint32_t i = 0; i < g->tables_count; i++)
        p->tables[i] = g->tables[i].data;
}

static enum err_code plan_section(struct rdu_program *p, uint32_t section, struct err *e)
{
    struct opt_section clusters;
    struct opt_saved saved;
    bool fused = p->opt.exec != RDU_EXEC_UNFUSED;
    buf_printf(&p->report, "%s %s:\n", fused ? "fuse" : "map", section_name[section]);
    enum err_code rc = opt_fuse(p->graph, section, fused, &clusters, &saved, &p->report, e);
    if (rc == ERR_OK) {
        opt_buffers(p, section, &clusters);
        find_local(&p->section[section]);
        buf_printf(&p->report, "  %u launches", p->section[section].count);
        if (fused)
            buf_printf(&p->report, ", %u less than one per operator, and %llu bytes per row less",
                       saved.launches, (unsigned long long)saved.bytes);
        buf_puts(&p->report, "\n");
    }
    free(clusters.clusters);
    return rc;
}

static void take_slots(struct rdu_program *p)
{
    p->global_slots = p->graph->slots[0];
    p->layer_slots = p->graph->slots[1];
    p->kv_heads = p->graph->kv_heads;
    p->head_dim = p->graph->head_dim;
    p->width = p->graph->section[RDU_SECTION_LAYER].width;
    const struct ir_section *head = &p->graph->section[RDU_SECTION_HEAD];
    p->vocab = ir_shape_width(&p->graph->nodes[head->result].key.shape);
}

static enum err_code build(struct rdu_program *p, const struct rdu_graph *from, struct err *e)
{
    p->graph = opt_simplify(from);
    report_simplify(p);
    enum err_code rc = ir_verify(p->graph, e);
    if (rc != ERR_OK)
        return err_wrap(e, "after simplification");
    take_slots(p);
    note_for_native(p);
    ir_exec_prepare(p->graph);
    if (p->opt.exec == RDU_EXEC_INTERP)
        return ERR_OK;
    for (uint32_t s = 0; s < RDU_SECTIONS && rc == ERR_OK; s++)
        rc = plan_section(p, s, e);
    if (rc == ERR_OK)
        buf_printf(&p->report, "place: %zu bytes per token, %zu with a buffer for every value\n", p->row_bytes_peak,
                   p->row_bytes_naive);
    return rc;
}

enum err_code rdu_program_open(struct rdu_graph **g, const struct rdu_program_options *opt,
                               struct rdu_program **ret, struct err *e)
{
    struct rdu_program *p = mem_alloc(sizeof(*p));
    p->opt = *opt;
    p->numerics = (*g)->numerics;
    enum err_code rc = check_options(*g, opt, e);
    if (rc == ERR_OK)
        rc = ir_verify(*g, e);
    if (rc == ERR_OK)
        rc = build(p, *g, e);
    rdu_graph_close(g);
    if (rc != ERR_OK) {
        rdu_program_close(&p);
        return rc;
    }
    *ret = p;
    return ERR_OK;
}

void rdu_program_close(struct rdu_program **p)
{
    if (*p == NULL)
        return;
    for (int s = 0; s < RDU_SECTIONS; s++) {
        struct rdu_section_plan *plan = &(*p)->section[s];
        for (uint32_t i = 0; i < plan->count; i++)
            free((char *)(uintptr_t)plan->launches[i].name);
        free(plan->launches);
    }
    for (uint32_t i = 0; i < (*p)->bufs_count; i++)
        free((char *)(uintptr_t)(*p)->bufs[i].name);
    free((*p)->bufs);
    free((*p)->tables);
    buf_done(&(*p)->report);
    rdu_graph_close(&(*p)->graph);
    free(*p);
    *p = NULL;
}

/* ---- questions ------------------------------------------------------------------------------- */

enum rdu_exec rdu_program_exec(const struct rdu_program *p)
{
    return p->opt.exec;
}

enum rdu_numerics rdu_program_numerics(const struct rdu_program *p)
{
    return p->numerics;
}

static const struct rdu_slot_list *scope_of(const struct rdu_program *p, enum rdu_section scope)
{
    return scope == RDU_SECTION_LAYER ? &p->layer_slots : &p->global_slots;
}

uint32_t rdu_program_slots(const struct rdu_program *p, enum rdu_section scope)
{
    return scope_of(p, scope)->count;
}

const struct rdu_slot_info *rdu_program_slot(const struct rdu_program *p, enum rdu_section scope,
                                             uint32_t slot_idx)
{
    const struct rdu_slot_list *l = scope_of(p, scope);
    return slot_idx < l->count ? &l->slots[slot_idx] : NULL;
}

uint32_t rdu_program_width(const struct rdu_program *p)
{
    return p->width;
}

uint32_t rdu_program_vocab(const struct rdu_program *p)
{
    return p->vocab;
}

void rdu_program_kv(const struct rdu_program *p, uint32_t *ret_kv_heads, uint32_t *ret_head_dim)
{
    *ret_kv_heads = p->kv_heads;
    *ret_head_dim = p->head_dim;
}

size_t rdu_program_scratch(const struct rdu_program *p, uint32_t n_tokens, uint32_t n_outs,
                           size_t *ret_naive)
{
    size_t rows = BASE_MAX(n_tokens, n_outs);
    if (ret_naive)
        *ret_naive = p->row_bytes_naive * rows;
    return p->row_bytes_peak * rows;
}

size_t rdu_kv_page_bytes(enum rdu_kv_type type, uint32_t layers, uint32_t kv_heads,
                         uint32_t head_dim, uint32_t page_tokens)
{
    size_t blocks = (page_tokens + RDU_KV_BLOCK - 1) / RDU_KV_BLOCK;
    return (size_t)layers * kv_heads * blocks * rdu_kv_block_bytes(type, head_dim);
}
