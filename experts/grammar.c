/* Grammars: making nodes, checking the whole, lifetime. Nodes are made from a rule's end to its front,
 * so that no patch lists are needed; only loops name a node before they know what it does. */
#include "experts/grammar.h"

#include <stdlib.h>
#include <string.h>

/* ---- nodes --------------------------------------------------------------------------------- */

static uint32_t add_node(struct gbuild *b, struct gnode node)
{
    if (b->nodes_count == GRAMMAR_NODES_MAX) {
        b->full = true;
        return GNODE_IDX_FAIL;
    }
    if (b->nodes_count == b->nodes_cap) {
        b->nodes_cap = b->nodes_cap ? 2 * b->nodes_cap : 256;
        b->nodes = mem_grow(b->nodes, b->nodes_cap, sizeof *b->nodes);
    }
    b->nodes[b->nodes_count] = node;
    return b->nodes_count++;
}

void gb_init(struct gbuild *b)
{
    *b = (struct gbuild){0};
    add_node(b, (struct gnode){.kind = GNODE_END});
    add_node(b, (struct gnode){.kind = GNODE_FAIL});
}

void gb_done(struct gbuild *b)
{
    free(b->nodes);
    free(b->rules);
    *b = (struct gbuild){0};
}

uint32_t gb_byte(struct gbuild *b, uint8_t lo, uint8_t hi, uint32_t next)
{
    if (next == GNODE_IDX_FAIL || lo > hi)
        return GNODE_IDX_FAIL;
    return add_node(b, (struct gnode){.kind = GNODE_BYTE, .lo = lo, .hi = hi, .next = next});
}

uint32_t gb_split(struct gbuild *b, uint32_t one, uint32_t other)
{
    if (one == GNODE_IDX_FAIL || one == other)
        return other;
    if (other == GNODE_IDX_FAIL)
        return one;
    return add_node(b, (struct gnode){.kind = GNODE_SPLIT, .next = one, .arg = other});
}

uint32_t gb_call(struct gbuild *b, uint32_t rule, uint32_t next)
{
    if (next == GNODE_IDX_FAIL)
        return GNODE_IDX_FAIL;
    return add_node(b, (struct gnode){.kind = GNODE_CALL, .arg = rule, .next = next});
}

uint32_t gb_text(struct gbuild *b, const char *text, size_t len, uint32_t next)
{
    for (size_t i = len; i-- > 0;)
        next = gb_byte(b, (uint8_t)text[i], (uint8_t)text[i], next);
    return next;
}

uint32_t gb_loop(struct gbuild *b)
{
    return add_node(b, (struct gnode){.kind = GNODE_SPLIT, .next = GNODE_IDX_FAIL, .arg = GNODE_IDX_FAIL});
}

void gb_loop_set(struct gbuild *b, uint32_t loop, uint32_t one, uint32_t other)
{
    if (loop == GNODE_IDX_FAIL) /* the limit was met */
        return;
    b->nodes[loop].next = one;
    b->nodes[loop].arg = other;
}

uint32_t gb_rule(struct gbuild *b)
{
    if (b->rules_count == GRAMMAR_RULES_MAX) {
        b->full = true;
        return 0;
    }
    if (b->rules_count == b->rules_cap) {
        b->rules_cap = b->rules_cap ? 2 * b->rules_cap : 64;
        b->rules = mem_grow(b->rules, b->rules_cap, sizeof *b->rules);
    }
    b->rules[b->rules_count] = GNODE_IDX_FAIL;
    return b->rules_count++;
}

void gb_rule_set(struct gbuild *b, uint32_t rule, uint32_t entry)
{
    b->rules[rule] = entry;
}

/* ---- ranges of strings ------------------------------------------------------------------------ */

static bool all_are(const uint8_t *s, size_t n, uint8_t byte)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != byte)
            return false;
    return true;
}

static uint32_t span_rest(struct gbuild *b, const uint8_t *lo, const uint8_t *hi, size_t n,
                          struct gspan span, uint32_t next)
{
    uint8_t floor[24], ceil[24];
    memset(floor, span.floor, sizeof floor);
    memset(ceil, span.ceil, sizeof ceil);
    uint8_t from = lo[0], to = hi[0];
    uint32_t out = GNODE_IDX_FAIL;
    if (from == to)
        return gb_byte(b, from, to, gb_span(b, lo + 1, hi + 1, n - 1, span, next));
    if (!all_are(lo + 1, n - 1, span.floor)) {
        out = gb_byte(b, from, from, gb_span(b, lo + 1, ceil, n - 1, span, next));
        from++;
    }
    if (!all_are(hi + 1, n - 1, span.ceil)) {
        out = gb_split(b, out, gb_byte(b, to, to, gb_span(b, floor, hi + 1, n - 1, span, next)));
        to--;
    }
    if (from <= to)
        out = gb_split(b, out, gb_byte(b, from, to, gb_span(b, floor, ceil, n - 1, span, next)));
    return out;
}

uint32_t gb_span(struct gbuild *b, const uint8_t *lo, const uint8_t *hi, size_t n, struct gspan span,
                 uint32_t next)
{
    if (n == 0)
        return next;
    uint32_t out = span_rest(b, lo, hi, n, span, next);
    return span.point == n ? gb_byte(b, '.', '.', out) : out;
}

uint32_t gb_code_points(struct gbuild *b, uint32_t lo, uint32_t hi, uint32_t next)
{
    /* One length of encoding each; the gap is the surrogates. */
    static const struct grange plane[] = {
        {0, 0x7f}, {0x80, 0x7ff}, {0x800, 0xd7ff}, {0xe000, 0xffff}, {0x10000, 0x10ffff}};
    uint32_t out = GNODE_IDX_FAIL;
    for (size_t i = 0; i < BASE_COUNT(plane); i++) {
        char from[4] = {0}, to[4] = {0};
        uint32_t l = BASE_MAX(lo, plane[i].lo), h = BASE_MIN(hi, plane[i].hi);
        if (l > h)
            continue;
        unsigned n = utf8_encode(l, from);
        utf8_encode(h, to);
        out = gb_split(b, out, gb_span(b, (const uint8_t *)from, (const uint8_t *)to, n,
                                       (struct gspan){0x80, 0xbf, 0}, next));
    }
    return out;
}

uint32_t gb_repeat(struct gbuild *b, uint32_t rule, uint32_t min, uint32_t max, uint32_t next)
{
    uint32_t out = next;
    if (min > max)
        return GNODE_IDX_FAIL;
    if (max == UINT32_MAX) {
        out = gb_loop(b);
        gb_loop_set(b, out, gb_call(b, rule, out), next);
    } else {
        for (uint32_t i = min; i < max && !b->full; i++)
            out = gb_split(b, gb_call(b, rule, out), next);
    }
    for (uint32_t i = 0; i < min && !b->full; i++)
        out = gb_call(b, rule, out);
    return out;
}

/* ---- checking the whole ------------------------------------------------------------------------ */

static uint16_t height_of(const struct gbuild *b, const struct gnode *n)
{
    uint32_t h = 0;
    switch ((enum gnode_kind)n->kind) {
    case GNODE_END:
        return 0;
    case GNODE_FAIL:
        return GRAMMAR_NEVER;
    case GNODE_BYTE:
        return b->nodes[n->next].height;
    case GNODE_SPLIT:
        return BASE_MIN(b->nodes[n->next].height, b->nodes[n->arg].height);
    case GNODE_CALL:
        h = b->nodes[b->rules[n->arg]].height;
        if (h != GRAMMAR_NEVER && n->next != GNODE_IDX_END)
            h++;
        return (uint16_t)BASE_MAX(h, (uint32_t)b->nodes[n->next].height);
    }
    return GRAMMAR_NEVER;
}

static bool nullable_of(const struct gbuild *b, const struct gnode *n)
{
    switch ((enum gnode_kind)n->kind) {
    case GNODE_END:
        return true;
    case GNODE_SPLIT:
        return b->nodes[n->next].nullable || b->nodes[n->arg].nullable;
    case GNODE_CALL:
        return b->nodes[b->rules[n->arg]].nullable && b->nodes[n->next].nullable;
    default:
        return false;
    }
}

static uint32_t bytes_of(const struct gbuild *b, const struct gnode *n)
{
    uint32_t rest = 0;
    switch ((enum gnode_kind)n->kind) {
    case GNODE_END:
        return 0;
    case GNODE_FAIL:
        return GRAMMAR_BYTES_MAX;
    case GNODE_BYTE:
        rest = 1 + b->nodes[n->next].bytes;
        break;
    case GNODE_SPLIT:
        return BASE_MIN(b->nodes[n->next].bytes, b->nodes[n->arg].bytes);
    case GNODE_CALL:
        rest = b->nodes[b->rules[n->arg]].bytes + b->nodes[n->next].bytes;
        break;
    }
    return BASE_MIN(rest, GRAMMAR_BYTES_MAX);
}

/* Fixed points: heights and bytes sink from NEVER, nullable rises from false. Most nodes come after what they
 * point to, and sweeps go both ways, so a few settle all. */
static void settle(struct gbuild *b)
{
    bool changed = true, up = false;
    for (uint32_t i = 0; i < b->nodes_count; i++) {
        b->nodes[i].height = GRAMMAR_NEVER;
        b->nodes[i].bytes = GRAMMAR_BYTES_MAX;
    }
    while (changed) {
        changed = false;
        up = !up;
        for (uint32_t i = 0; i < b->nodes_count; i++) {
            struct gnode *n = &b->nodes[up ? i : b->nodes_count - 1 - i];
            uint16_t h = height_of(b, n);
            bool nullable = nullable_of(b, n);
            uint32_t bytes = bytes_of(b, n);
            changed |= h != n->height || nullable != n->nullable || bytes != n->bytes;
            n->height = h;
            n->bytes = bytes;
            n->nullable = nullable;
        }
    }
}

struct left_edges {
    uint32_t *to;            /* rules that can be called before a byte is read, by caller */
    uint32_t *first;         /* [rules + 1] */
    size_t count, cap;
};

/* Rules that `rule` may call before it has read anything. */
static void collect_left(const struct gbuild *b, uint32_t rule, uint32_t *seen, uint32_t *todo,
                         struct left_edges *edges)
{
    size_t n = 0;
    todo[n++] = b->rules[rule];
    seen[b->rules[rule]] = rule + 1;
    while (n > 0) {
        const struct gnode *node = &b->nodes[todo[--n]];
        uint32_t ways[2], count = 0;
        if (node->kind == GNODE_CALL) {
            if (edges->count == edges->cap) {
                edges->cap = edges->cap ? 2 * edges->cap : 256;
                edges->to = mem_grow(edges->to, edges->cap, sizeof *edges->to);
            }
            edges->to[edges->count++] = node->arg;
            if (b->nodes[b->rules[node->arg]].nullable)
                ways[count++] = node->next;
        } else if (node->kind == GNODE_SPLIT) {
            ways[count++] = node->next;
            ways[count++] = node->arg;
        }
        for (uint32_t i = 0; i < count; i++)
            if (seen[ways[i]] != rule + 1) {
                seen[ways[i]] = rule + 1;
                todo[n++] = ways[i];
            }
    }
}

/* Left recursion is a cycle among left calls: what cannot be removed as nobody's callee is on one. */
static bool left_recursive(const struct gbuild *b)
{
    struct left_edges edges = {.first = mem_array(b->rules_count + 1, sizeof(uint32_t))};
    uint32_t *seen = mem_array(b->nodes_count, sizeof *seen);
    uint32_t *todo = mem_array(b->nodes_count + 1, sizeof *todo);
    uint32_t *callers = mem_array(b->rules_count + 1, sizeof *callers), removed = 0;
    for (uint32_t r = 0; r < b->rules_count; r++) {
        edges.first[r] = (uint32_t)edges.count;
        collect_left(b, r, seen, todo, &edges);
    }
    edges.first[b->rules_count] = (uint32_t)edges.count;
    for (size_t i = 0; i < edges.count; i++)
        callers[edges.to[i]]++;
    uint32_t *free_rules = mem_array(b->rules_count + 1, sizeof *free_rules), n = 0;
    for (uint32_t r = 0; r < b->rules_count; r++)
        if (callers[r] == 0)
            free_rules[n++] = r;
    while (n > 0) {
        uint32_t r = free_rules[--n];
        removed++;
        for (uint32_t i = edges.first[r]; i < edges.first[r + 1]; i++)
            if (--callers[edges.to[i]] == 0)
                free_rules[n++] = edges.to[i];
    }
    free(free_rules);
    free(callers);
    free(todo);
    free(seen);
    free(edges.first);
    free(edges.to);
    return removed < b->rules_count;
}

enum err_code gb_finish(struct gbuild *b, uint32_t root, const char *param, struct grammar **ret,
                        struct err *e)
{
    if (b->full)
        return err_set_param(e, ERR_INVALID, param,
                             "'%s' comes to more than %u states or %u rules; use smaller counts and "
                             "lengths", param, GRAMMAR_NODES_MAX, GRAMMAR_RULES_MAX);
    settle(b);
    if (left_recursive(b))
        return err_set_param(e, ERR_INVALID, param,
                             "'%s' has a rule that begins with itself; put something before the "
                             "recursion", param);
    uint16_t height = b->nodes[b->rules[root]].height;
    if (height == GRAMMAR_NEVER)
        return err_set_param(e, ERR_INVALID, param, "'%s' can be met by no text", param);
    if (height > GRAMMAR_DEPTH_MAX)
        return err_set_param(e, ERR_INVALID, param, "'%s' asks for more than %u levels", param,
                             GRAMMAR_DEPTH_MAX);
    struct grammar *g = mem_alloc(sizeof *g);
    atomic_init(&g->refs, 1);
    g->nodes = b->nodes;
    g->rules = b->rules;
    g->nodes_count = b->nodes_count;
    g->rules_count = b->rules_count;
    g->root = root;
    *b = (struct gbuild){0};
    *ret = g;
    return ERR_OK;
}

/* ---- lifetime ------------------------------------------------------------------------------------ */

struct grammar *grammar_ref(struct grammar *g)
{
    if (g != NULL) /* relaxed: whoever calls this already holds a reference */
        atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
    return g;
}

void grammar_unref(struct grammar **gp)
{
    struct grammar *g = *gp;
    *gp = NULL;
    /* Release pairs with the acquire of whoever drops the last reference. */
    if (g == NULL || atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) != 1)
        return;
    free(g->nodes);
    free(g->rules);
    free(g);
}

enum err_code grammar_compile_json_object(struct grammar **ret, struct err *e)
{
    struct gbuild b;
    gb_init(&b);
    uint32_t root = gb_json(&b, GJSON_OBJECT);
    enum err_code code = gb_finish(&b, root, "response_format", ret, e);
    gb_done(&b);
    return code;
}
