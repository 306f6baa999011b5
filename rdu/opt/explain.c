/* What a program is, for people and for tools: what each pass did, the launches with their work and
 * how the sockets share it, and the arena. */
#include <string.h>

#include "rdu/opt/opt.h"

static const char *const section_name[RDU_SECTIONS] = {"embed", "layer", "head"};
static const char *const exec_name[] = {"interp", "unfused", "fused", "native"};

/* ---- partition ------------------------------------------------------------------------------- */

/* How a launch's output is divided over the sockets, by the stencil of its inputs: a matmul needs
 * all of x and an interval of weight rows, row-wise kernels an interval of tokens, attention one kv
 * head. */
static const char *split_of(enum rdu_kernel k)
{
    switch (k) {
    case RDU_KERNEL_MATMUL:
    case RDU_KERNEL_HEAD:
    case RDU_KERNEL_GATE_UP:
        return "rows";
    case RDU_KERNEL_ATTENTION:
        return "token and kv head";
    case RDU_KERNEL_LOOP:
        return "none";
    default:
        return "tokens";
    }
}

/* Smallest and largest share of weight rows of one socket: whole groups, or whole blocks where the
 * rows are quantised right after. */
static void shares(const struct rdu_program *p, const struct rdu_launch *l, uint32_t rows,
                   uint32_t *ret_min, uint32_t *ret_max)
{
    uint32_t sockets = p->opt.sockets;
    *ret_min = UINT32_MAX;
    *ret_max = 0;
    for (uint32_t s = 0; s < sockets; s++) {
        uint32_t first, last;
        opt_share(l, rows, sockets, s, &first, &last);
        *ret_min = BASE_MIN(*ret_min, last - first);
        *ret_max = BASE_MAX(*ret_max, last - first);
    }
}

static const struct rdu_slot_info *slot_of(const struct rdu_program *p, uint32_t section,
                                           uint32_t slot)
{
    return rdu_program_slot(p, (enum rdu_section)section, slot);
}

/* ---- text ------------------------------------------------------------------------------------ */

static void print_buf(const struct rdu_program *p, uint32_t id, struct buf *out)
{
    if (id == RDU_BUF_X)
        buf_puts(out, "x");
    else if (id == RDU_BUF_LOGITS)
        buf_puts(out, "logits");
    else if (id < p->bufs_count)
        buf_printf(out, "b%u", id);
}

static void print_bufs(const struct rdu_program *p, const uint32_t *ids, uint32_t count,
                       struct buf *out)
{
    const char *between = "";
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] == RDU_BUF_NONE)
            continue;
        buf_puts(out, between);
        print_buf(p, ids[i], out);
        between = " ";
    }
}

static void text_launch(const struct rdu_program *p, uint32_t section, const struct rdu_launch *l,
                        struct buf *out)
{
    struct opt_work w = opt_launch_work(p, l);
    buf_printf(out, "  %-20s %-11s ", l->name, rdu_kernel_name(l->kernel));
    print_bufs(p, l->in, 3, out);
    buf_puts(out, l->add ? " => " : " -> ");
    print_bufs(p, l->out, 4, out);
    buf_printf(out, "; %u nodes, %llu flops, %llu bytes per row", l->nodes,
               (unsigned long long)w.flops, (unsigned long long)w.act_bytes);
    if (w.weight_elems > 0)
        buf_printf(out, ", %llu weights per step", (unsigned long long)w.weight_elems);
    if (w.flops_ctx > 0)
        buf_printf(out, ", %llu flops and %llu KV elements per position",
                   (unsigned long long)w.flops_ctx, (unsigned long long)w.kv_elems_ctx);
    buf_printf(out, "; split by %s", split_of(l->kernel));
    for (uint32_t i = 0; i < l->slots && strcmp(split_of(l->kernel), "rows") == 0; i++) {
        const struct rdu_slot_info *s = slot_of(p, section, l->slot[i]);
        uint32_t min, max;
        shares(p, l, s->rows, &min, &max);
        buf_printf(out, "%s %s %u..%u", i ? "," : "", s->name, min, max);
    }
    buf_puts(out, "\n");
}

static void text_sections(const struct rdu_program *p, struct buf *out)
{
    for (uint32_t s = 0; s < RDU_SECTIONS; s++) {
        const struct rdu_section_plan *plan = &p->section[s];
        if (plan->count == 0)
            continue;
        buf_printf(out, "\nlaunches of %s (in -> out, => adds in place)\n", section_name[s]);
        for (uint32_t i = 0; i < plan->count; i++)
            text_launch(p, s, &plan->launches[i], out);
    }
}

static void text_buffers(const struct rdu_program *p, struct buf *out)
{
    if (p->bufs_count == 0)
        return;
    buf_printf(out,
               "\narena: %zu bytes per token, %zu with a buffer for every value of the graph\n",
               p->row_bytes_peak, p->row_bytes_naive);
    for (uint32_t i = 0; i < p->bufs_count; i++) {
        const struct rdu_buf *b = &p->bufs[i];
        buf_printf(out, "  b%-3u %-28s %-4s width %-6u %s offset %zu, %zu bytes\n", i, b->name,
                   b->kind == RDU_BUF_Q8 ? "int8" : "f32", b->width,
                   b->per_out ? "outs  " : "tokens", b->row_offset, b->row_bytes);
    }
}

static void text(const struct rdu_program *p, struct buf *out)
{
    buf_printf(out, "program %s: %s numerics, exec %s, %u sockets, width %u, vocabulary %u\n",
               p->graph->name, p->numerics == RDU_NUMERICS_INT8 ? "int8" : "f32",
               exec_name[p->opt.exec], p->opt.sockets, p->width, p->vocab);
    buf_append(out, p->report.data, p->report.len);
    text_sections(p, out);
    text_buffers(p, out);
    buf_puts(out, "\n");
    rdu_graph_print(p->graph, out);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void json_string(const char *s, size_t len, struct buf *out)
{
    buf_puts(out, "\"");
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\')
            buf_printf(out, "\\%c", c);
        else if (c < 0x20 ||
                 c >= 0x7f) /* names are ours; whatever else came in must not break the text */
            buf_printf(out, "\\u%04x", c);
        else
            buf_append(out, &c, 1);
    }
    buf_puts(out, "\"");
}

static void json_text(const char *key, const char *s, struct buf *out)
{
    buf_printf(out, "\"%s\":", key);
    json_string(s, strlen(s), out);
}

static void json_bufs(const struct rdu_program *p, const char *key, const uint32_t *ids,
                      uint32_t count, struct buf *out)
{
    buf_printf(out, ",\"%s\":[", key);
    const char *between = "";
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] == RDU_BUF_NONE)
            continue;
        buf_printf(out, "%s\"", between);
        print_buf(p, ids[i], out);
        buf_puts(out, "\"");
        between = ",";
    }
    buf_puts(out, "]");
}

static void json_slots(const struct rdu_program *p, uint32_t section, const struct rdu_launch *l,
                       struct buf *out)
{
    buf_puts(out, ",\"slots\":[");
    for (uint32_t i = 0; i < l->slots; i++) {
        const struct rdu_slot_info *s = slot_of(p, section, l->slot[i]);
        uint32_t min, max;
        shares(p, l, s->rows, &min, &max);
        buf_puts(out, i ? ",{" : "{");
        json_text("name", s->name, out);
        buf_printf(out, ",\"rows\":%u,\"cols\":%u,\"socket_rows_min\":%u,\"socket_rows_max\":%u}",
                   s->rows, s->cols, min, max);
    }
    buf_puts(out, "]");
}

static void json_launch(const struct rdu_program *p, uint32_t section, const struct rdu_launch *l,
                        struct buf *out)
{
    struct opt_work w = opt_launch_work(p, l);
    buf_puts(out, "{");
    json_text("name", l->name, out);
    buf_puts(out, ",");
    json_text("kernel", rdu_kernel_name(l->kernel), out);
    json_bufs(p, "in", l->in, 3, out);
    json_bufs(p, "out", l->out, 4, out);
    buf_printf(out, ",\"add\":%s,\"nodes\":%u,", l->add ? "true" : "false", l->nodes);
    json_text("split", split_of(l->kernel), out);
    json_slots(p, section, l, out);
    buf_printf(out,
               ",\"flops\":%llu,\"flops_per_position\":%llu,\"act_bytes\":%llu,\"weights\":%llu,"
               "\"kv_appended\":%llu,\"kv_per_position\":%llu}",
               (unsigned long long)w.flops, (unsigned long long)w.flops_ctx,
               (unsigned long long)w.act_bytes, (unsigned long long)w.weight_elems,
               (unsigned long long)w.kv_elems, (unsigned long long)w.kv_elems_ctx);
}

static void json_sections(const struct rdu_program *p, struct buf *out)
{
    buf_puts(out, ",\"sections\":[");
    for (uint32_t s = 0; s < RDU_SECTIONS; s++) {
        const struct rdu_section_plan *plan = &p->section[s];
        buf_printf(out, "%s{\"name\":\"%s\",\"launches\":[", s ? "," : "", section_name[s]);
        for (uint32_t i = 0; i < plan->count; i++) {
            buf_puts(out, i ? "," : "");
            json_launch(p, s, &plan->launches[i], out);
        }
        buf_puts(out, "]}");
    }
    buf_puts(out, "]");
}

static void json_buffers(const struct rdu_program *p, struct buf *out)
{
    buf_puts(out, ",\"buffers\":[");
    for (uint32_t i = 0; i < p->bufs_count; i++) {
        const struct rdu_buf *b = &p->bufs[i];
        buf_printf(out, "%s{\"id\":\"b%u\",", i ? "," : "", i);
        json_text("name", b->name, out);
        buf_printf(
            out,
            ",\"kind\":\"%s\",\"width\":%u,\"rows\":\"%s\",\"row_bytes\":%zu,\"row_offset\":%zu}",
            b->kind == RDU_BUF_Q8 ? "int8" : "f32", b->width, b->per_out ? "outs" : "tokens",
            b->row_bytes, b->row_offset);
    }
    buf_printf(out, "],\"arena\":{\"row_bytes\":%zu,\"row_bytes_naive\":%zu}", p->row_bytes_peak,
               p->row_bytes_naive);
}

static void json_report(const struct rdu_program *p, struct buf *out)
{
    const struct ir_counts *c = &p->graph->counts;
    buf_printf(
        out,
        ",\"simplify\":{\"nodes_before\":%u,\"nodes_after\":%u,\"ops_before\":%u,\"ops_after\":%u,"
        "\"folded\":%u,\"moved\":%u,\"unused\":%u,\"copies\":%u,\"outs_only\":%u},\"passes\":[",
        c->nodes_before, c->nodes_after, c->ops_before, c->ops_after, c->body.folded, c->body.moved,
        c->body.removed, c->copies, c->hoisted);
    const char *at = p->report.data, *end = at + p->report.len, *between = "";
    while (at < end) {
        const char *line = memchr(at, '\n', (size_t)(end - at));
        size_t len = line ? (size_t)(line - at) : (size_t)(end - at);
        buf_puts(out, between);
        json_string(at, len, out);
        between = ",";
        at += len + 1;
    }
    buf_puts(out, "]");
}

static void json(const struct rdu_program *p, struct buf *out)
{
    buf_puts(out, "{");
    json_text("program", p->graph->name, out);
    buf_printf(out, ",\"numerics\":\"%s\",\"exec\":\"%s\",\"sockets\":%u,\"width\":%u,\"vocab\":%u",
               p->numerics == RDU_NUMERICS_INT8 ? "int8" : "f32", exec_name[p->opt.exec],
               p->opt.sockets, p->width, p->vocab);
    json_report(p, out);
    json_sections(p, out);
    json_buffers(p, out);
    struct buf graph = {0};
    rdu_graph_print(p->graph, &graph);
    buf_puts(out, ",\"graph\":");
    json_string(graph.data, graph.len, out);
    buf_puts(out, "}");
    buf_done(&graph);
}

void rdu_program_explain(const struct rdu_program *p, bool as_json, struct buf *out)
{
    if (as_json)
        json(p, out);
    else
        text(p, out);
}
