/* Where values live. First storage: kernels that work in place share the buffer of what they
 * change, x and the logits are written in place as soon as nothing reads what they held, a residual
 * add that may not overwrite its operand is split again. Then offsets: buffers of a section whose
 * lives do not touch may share bytes. */
#include <stdlib.h>
#include <string.h>

#include "rdu/opt/opt.h"

struct place {
    struct rdu_program *p;
    const struct rdu_graph *g;
    uint32_t section;
    const struct opt_section *s;
    uint32_t *storage;  /* [nodes] buffer id */
    bool *many;         /* [nodes] may exist once per host thread, see is_many */
    uint32_t *last_use; /* [nodes] number of the last cluster that reads it, clusters.count for the
                           result */
    uint32_t final;     /* RDU_BUF_X or RDU_BUF_LOGITS */
    uint32_t in_x;      /* node whose value x holds; IR_NONE */
    struct rdu_launch *launches;
    uint32_t count;
};

static uint32_t result_of(const struct place *c)
{
    return c->g->section[c->section].result;
}

static void note_use(struct place *c, uint32_t node, uint32_t when)
{
    if (node != IR_NONE)
        c->last_use[node] = BASE_MAX(c->last_use[node], when);
}

static void find_last_uses(struct place *c)
{
    for (uint32_t i = 0; i < c->s->count; i++) {
        const struct opt_cluster *k = &c->s->clusters[i];
        for (int n = 0; n < 3; n++)
            note_use(c, k->l.in[n], i);
        note_use(c, k->residual, i);
    }
    note_use(c, result_of(c), c->s->count);
}

/* ---- names ----------------------------------------------------------------------------------- */

static size_t stem_len(const char *slot)
{
    const char *dot = strrchr(slot, '.');
    return dot ? (size_t)(dot - slot) : strlen(slot);
}

/* "attn_q.weight", "attn_k.weight", "attn_v.weight" -> "attn_qkv"; longer tails keep their
 * underscore. */
static char *slots_name(const struct place *c, const struct rdu_launch *l)
{
    struct buf b = {0};
    for (uint32_t i = 0; i < l->slots; i++) {
        const char *slot = ir_slot(c->g, c->section, l->slot[i])->name;
        size_t len = stem_len(slot), skip = 0;
        const char *first = ir_slot(c->g, c->section, l->slot[0])->name;
        const char *bar = memchr(first, '_', stem_len(first));
        if (i > 0 && bar && len > (size_t)(bar - first) &&
            memcmp(slot, first, (size_t)(bar - first) + 1) == 0)
            skip = (size_t)(bar - first) + 1;
        if (i > 0 && (skip == 0 || len - skip > 1))
            buf_puts(&b, "_");
        buf_append(&b, slot + skip, len - skip);
    }
    return b.data;
}

static char *launch_name(const struct place *c, const struct rdu_launch *l)
{
    bool by_slot = l->slots > 0;
    if (by_slot)
        return slots_name(c, l);
    return mem_format("%s_%u", rdu_kernel_name(l->kernel), l->node);
}

/* ---- buffers --------------------------------------------------------------------------------- */

static size_t align(size_t v, size_t to)
{
    return (v + to - 1) / to * to;
}

static uint32_t new_buffer(struct place *c, uint32_t node, const char *name, const char *part)
{
    const struct ir_shape *shape = &c->g->nodes[node].key.shape;
    struct rdu_program *p = c->p;
    p->bufs = mem_grow(p->bufs, p->bufs_count + 1, sizeof(*p->bufs));
    struct rdu_buf *b = &p->bufs[p->bufs_count];
    memset(b, 0, sizeof(*b));
    b->kind = shape->elem == IR_ELEM_I8 ? RDU_BUF_Q8 : RDU_BUF_F32;
    b->width = ir_shape_width(shape);
    b->per_out = shape->dim[0] == RDU_DIM_OUTS;
    b->name = part[0] ? mem_format("%s.%s", name, part) : mem_strdup(name);
    size_t blocks = align(b->width, IR_RUN) / IR_RUN;
    b->row_bytes = b->kind == RDU_BUF_F32
                       ? align(b->width, 16) * sizeof(float)
                       : align(b->width, 64) + 2 * align(blocks, 16) * sizeof(float);
    return p->bufs_count++;
}

/* Element i of the output needs element i of in[0] (and in[1]) only: it may overwrite them. */
static bool is_elementwise(enum rdu_kernel k)
{
    return k == RDU_KERNEL_ADD || k == RDU_KERNEL_ADD_BIAS || k == RDU_KERNEL_SCALE ||
           k == RDU_KERNEL_SOFTCAP || k == RDU_KERNEL_ACT;
}

/* Is the value only read by an elementwise cluster as its in[0], which may then work where it lies?
 */
static uint32_t elementwise_reader(const struct place *c, uint32_t node)
{
    uint32_t found = IR_NONE;
    for (uint32_t i = 0; i < c->s->count; i++) {
        const struct opt_cluster *k = &c->s->clusters[i];
        bool reads = k->residual == node;
        for (int n = 0; n < 3; n++)
            reads |= k->l.in[n] == node;
        if (!reads)
            continue;
        if (found != IR_NONE || !is_elementwise(k->l.kernel) || k->l.in[0] != node)
            return IR_NONE;
        found = i;
    }
    return found;
}

/* Will the value become the section's result through elementwise launches alone, in the same shape?
 */
static bool becomes_result(const struct place *c, uint32_t node)
{
    for (uint32_t at = node;;) {
        if (at == result_of(c))
            return true;
        uint32_t i = elementwise_reader(c, at);
        if (i == IR_NONE)
            return false;
        uint32_t next = c->s->clusters[i].l.out[0];
        if (ir_shape_width(&c->g->nodes[next].key.shape) !=
            ir_shape_width(&c->g->nodes[node].key.shape))
            return false;
        at = next;
    }
}

/* May launch i write all of x? Only if nobody still needs what it holds; launch i itself may if it
 * is elementwise. */
static bool x_is_free(const struct place *c, const struct rdu_launch *l, uint32_t i)
{
    if (c->in_x == IR_NONE)
        return true;
    uint32_t last = c->last_use[c->in_x];
    return last < i || (last == i && is_elementwise(l->kernel));
}

static bool in_final(struct place *c, const struct rdu_launch *l, uint32_t node, uint32_t i)
{
    if (!becomes_result(c, node))
        return false;
    if (c->final == RDU_BUF_LOGITS)
        return true;
    return x_is_free(c, l, i);
}

/* In small steps every host thread makes its own copy of what row-wise launches compute from x
 * alone (node/run.c, is_broadcast). Such values have no one place to be changed in. */
static bool is_many(const struct place *c, const struct rdu_launch *l)
{
    bool row_wise = l->kernel == RDU_KERNEL_NORM || l->kernel == RDU_KERNEL_QUANTIZE ||
                    l->kernel == RDU_KERNEL_TAKE_OUTS;
    return row_wise && (c->storage[l->in[0]] == RDU_BUF_X || c->many[l->in[0]]);
}

/* May launch i change the value where it lies? Its own buffer, one copy, and no later reader. */
static bool may_change(const struct place *c, uint32_t node, uint32_t i)
{
    return c->storage[node] < c->p->bufs_count && !c->many[node] && c->last_use[node] == i;
}

/* Storage of the value `node` that launch i makes (not in place). */
static void store(struct place *c, const struct rdu_launch *l, uint32_t node, uint32_t i,
                  const char *name, const char *part)
{
    uint32_t from = l->in[0];
    const struct ir_shape *shape = &c->g->nodes[node].key.shape;
    c->many[node] = from != IR_NONE && is_many(c, l);
    if (shape->elem == IR_ELEM_F32 && !c->many[node] && in_final(c, l, node, i)) {
        c->storage[node] = c->final;
        if (c->final == RDU_BUF_X)
            c->in_x = node;
        return;
    }
    if (is_elementwise(l->kernel) && node == l->out[0] && may_change(c, from, i) &&
        ir_shape_same_rows(shape, &c->g->nodes[from].key.shape)) {
        c->storage[node] = c->storage[from];
        return;
    }
    c->storage[node] = new_buffer(c, node, name, part);
}

/* ---- launches -------------------------------------------------------------------------------- */

static uint32_t storage_of(const struct place *c, uint32_t node)
{
    return node == IR_NONE ? RDU_BUF_NONE : c->storage[node];
}

/* Node ids to buffer ids. */
static void push(struct place *c, const struct rdu_launch *from, char *name)
{
    c->launches = mem_grow(c->launches, c->count + 1, sizeof(*c->launches));
    struct rdu_launch *l = &c->launches[c->count++];
    *l = *from;
    l->name = name;
    for (int k = 0; k < 3; k++)
        l->in[k] = storage_of(c, from->in[k]);
    for (int k = 0; k < 4; k++)
        l->out[k] = storage_of(c, from->out[k]);
    if (l->kernel == RDU_KERNEL_MATMUL && l->out[0] == RDU_BUF_LOGITS)
        l->kernel = RDU_KERNEL_HEAD;
}

/* to = from * 1: the same bits. */
static void push_copy(struct place *c, uint32_t node, uint32_t to)
{
    struct rdu_launch l = {.kernel = RDU_KERNEL_SCALE, .factor = 1.0f, .node = node, .nodes = 0};
    for (int k = 0; k < 3; k++)
        l.in[k] = IR_NONE;
    for (int k = 0; k < 4; k++)
        l.out[k] = IR_NONE;
    l.in[0] = node;
    push(c, &l, mem_format("copy_%u", node));
    c->launches[c->count - 1].out[0] = to;
}

/* The value `to` is `from` changed where it lies; copied first if somebody else needs it as it was.
 */
static void in_place(struct place *c, uint32_t from, uint32_t to, uint32_t i, const char *name,
                     const char *part)
{
    if (may_change(c, from, i)) {
        c->storage[to] = c->storage[from];
        return;
    }
    c->storage[to] = new_buffer(c, to, name, part);
    push_copy(c, from, c->storage[to]);
}

static void place_rope(struct place *c, const struct opt_cluster *k, uint32_t i, char *name)
{
    struct rdu_launch l = k->l;
    in_place(c, l.in[0], l.out[0], i, name, "q");
    l.in[0] = l.out[0];
    l.out[0] = IR_NONE;
    if (l.kernel == RDU_KERNEL_ROPE_APPEND) {
        in_place(c, l.in[1], l.out[1], i, name, "k");
        l.in[1] = l.out[1];
        l.out[1] = IR_NONE;
    }
    push(c, &l, name);
}

/* a += product where a lies, if this is a's last reader; else the product, then a + product. */
static void place_residual(struct place *c, const struct opt_cluster *k, uint32_t i, char *name)
{
    struct rdu_launch l = k->l;
    uint32_t a = k->residual, at = c->storage[a];
    bool in_x = at == RDU_BUF_X && c->last_use[a] == i;
    if ((in_x || may_change(c, a, i)) && l.in[0] != a) {
        c->storage[l.out[0]] = at;
        if (at == RDU_BUF_X)
            c->in_x = l.out[0];
        push(c, &l, name);
        return;
    }
    buf_printf(&c->p->report, "  split %%%u: the residual is read again later\n", l.out[0]);
    uint32_t sum = l.out[0];
    l.add = false;
    l.out[0] = k->product;
    l.node = k->product;
    l.nodes--;
    c->storage[k->product] = new_buffer(c, k->product, name, "product");
    push(c, &l, name);
    struct rdu_launch add = {.kernel = RDU_KERNEL_ADD,
                             .node = sum,
                             .nodes = 1,
                             .in = {a, k->product, IR_NONE},
                             .out = {sum, IR_NONE, IR_NONE, IR_NONE}};
    c->last_use[k->product] = i;
    char *add_name = launch_name(c, &add);
    store(c, &add, sum, i, add_name, "");
    push(c, &add, add_name);
}

static void place_plain(struct place *c, const struct opt_cluster *k, uint32_t i, char *name)
{
    static const char *const gate_part[4] = {"", "q8", "gate", "up"};
    const struct rdu_launch *l = &k->l;
    for (uint32_t o = 0; o < 4; o++) {
        if (l->out[o] == IR_NONE)
            continue;
        const char *part = gate_part[o];
        /* The activation is computed where the gate lies: element by element, by the same socket.
         */
        if (l->kernel == RDU_KERNEL_GATE_UP && o == 2 && c->storage[l->out[0]] < c->p->bufs_count) {
            c->storage[l->out[2]] = c->storage[l->out[0]];
            continue;
        }
        if (l->kernel == RDU_KERNEL_MATMUL && l->slots > 1)
            part = ir_slot(c->g, c->section, l->slot[o])->name;
        store(c, l, l->out[o], i, name, part);
    }
    push(c, l, name);
}

static void place_launches(struct place *c)
{
    for (uint32_t i = 0; i < c->s->count; i++) {
        const struct opt_cluster *k = &c->s->clusters[i];
        char *name = launch_name(c, &k->l);
        if (k->l.kernel == RDU_KERNEL_ROPE || k->l.kernel == RDU_KERNEL_ROPE_APPEND)
            place_rope(c, k, i, name);
        else if (k->residual != IR_NONE)
            place_residual(c, k, i, name);
        else
            place_plain(c, k, i, name);
    }
    if (c->storage[result_of(c)] != c->final)
        push_copy(c, result_of(c), c->final);
}

/* Bytes per row if every value of the section had a buffer of its own, products before and after
 * their adapters' deltas included; without the section's result, which is the caller's. */
static size_t naive_bytes(const struct rdu_graph *g, uint32_t section)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < g->count; i++) {
        const struct ir_key *key = &g->nodes[i].key;
        bool value =
            key->kind == IR_LOOP || (key->kind == IR_EXTERNAL && key->which != IR_EXT_KV_APPEND);
        if (value && key->section == section && i != g->section[section].result)
            sum +=
                align(ir_shape_width(&key->shape) * (uint32_t)ir_elem_bytes(key->shape.elem), 64);
    }
    return sum;
}

void opt_buffers(struct rdu_program *p, uint32_t section, const struct opt_section *clusters)
{
    const struct rdu_graph *g = p->graph;
    struct place c = {.p = p, .g = g, .section = section, .s = clusters, .in_x = IR_NONE};
    uint32_t from = p->bufs_count;
    c.final = section == RDU_SECTION_HEAD ? RDU_BUF_LOGITS : RDU_BUF_X;
    c.storage = mem_array(g->count, sizeof(*c.storage));
    c.last_use = mem_array(g->count, sizeof(*c.last_use));
    c.many = mem_array(g->count, sizeof(*c.many));
    for (uint32_t i = 0; i < g->count; i++)
        c.storage[i] = RDU_BUF_NONE;
    if (section != RDU_SECTION_EMBED) {
        c.in_x = g->section[section].input;
        c.storage[c.in_x] = RDU_BUF_X;
    }
    find_last_uses(&c);
    place_launches(&c);
    p->section[section].launches = c.launches;
    p->section[section].count = c.count;
    opt_place(p, section, from);
    p->row_bytes_naive += naive_bytes(g, section);
    free(c.storage);
    free(c.last_use);
    free(c.many);
}

/* ---- offsets --------------------------------------------------------------------------------- */

struct life {
    uint32_t from, to; /* launches, both inclusive */
};

static void live_at(const struct rdu_program *p, struct life *life, uint32_t id, uint32_t launch)
{
    if (id >= p->bufs_count)
        return;
    life[id].from = BASE_MIN(life[id].from, launch);
    life[id].to = BASE_MAX(life[id].to, launch);
}

static void find_lives(const struct rdu_program *p, uint32_t section, struct life *life)
{
    const struct rdu_section_plan *s = &p->section[section];
    for (uint32_t i = 0; i < s->count; i++) {
        for (int k = 0; k < 3; k++)
            live_at(p, life, s->launches[i].in[k], i);
        for (int k = 0; k < 4; k++)
            live_at(p, life, s->launches[i].out[k], i);
    }
}

/* Lowest offset at which buffer `id` meets none of the buffers already placed that live when it
 * does. */
static size_t lowest_offset(const struct rdu_program *p, const struct life *life, uint32_t from,
                            uint32_t id, const bool *placed)
{
    size_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t k = from; k < p->bufs_count; k++) {
            const struct rdu_buf *b = &p->bufs[k];
            bool together = placed[k] && life[k].from <= life[id].to && life[id].from <= life[k].to;
            if (together && at < b->row_offset + b->row_bytes &&
                b->row_offset < at + p->bufs[id].row_bytes) {
                at = b->row_offset + b->row_bytes;
                moved = true;
            }
        }
    }
    return at;
}

void opt_place(struct rdu_program *p, uint32_t section, uint32_t from)
{
    uint32_t n = BASE_MAX(p->bufs_count, 1u);
    struct life *life = mem_array(n, sizeof(*life));
    bool *placed = mem_array(n, sizeof(*placed));
    for (uint32_t i = 0; i < n; i++)
        life[i].from = UINT32_MAX;
    find_lives(p, section, life);
    size_t peak = 0;
    for (uint32_t step = from; step < p->bufs_count; step++) {
        uint32_t best =
            IR_NONE; /* largest first packs well enough: plans are a few percent above the bound */
        for (uint32_t i = from; i < p->bufs_count; i++) {
            if (!placed[i] && (best == IR_NONE || p->bufs[i].row_bytes > p->bufs[best].row_bytes))
                best = i;
        }
        p->bufs[best].row_offset = lowest_offset(p, life, from, best, placed);
        placed[best] = true;
        peak = BASE_MAX(peak, p->bufs[best].row_offset + p->bufs[best].row_bytes);
    }
    p->row_bytes_peak = BASE_MAX(p->row_bytes_peak, peak);
    free(life);
    free(placed);
}
