/* The expressions that patterns and GBNF share, and patterns themselves: the regular part of ECMA-262.
 * Where engines differ on what a class holds beyond ASCII (\W, [^\s]), the smaller set is taken: what is
 * generated then matches in all of them. */
#include "experts/grammar.h"

#include <stdlib.h>
#include <string.h>

/* ---- trees --------------------------------------------------------------------------------- */

struct gexpr *gexpr_new(struct arena *a, enum gexpr_kind kind)
{
    struct gexpr *x = arena_alloc(a, sizeof *x);
    x->kind = kind;
    return x;
}

void gexpr_add(struct gexpr *parent, struct gexpr *child)
{
    if (parent->last != NULL)
        parent->last->sibling = child;
    else
        parent->child = child;
    parent->last = child;
}

bool gset_add(struct gset *s, uint32_t lo, uint32_t hi)
{
    if (s->count == BASE_COUNT(s->range))
        return false;
    s->range[s->count++] = (struct grange){lo, hi};
    return true;
}

static int by_lo(const void *a, const void *b)
{
    const struct grange *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

/* Sorted and joined; returns how many are left. */
static size_t tidy(struct grange *r, size_t count)
{
    size_t n = 0;
    qsort(r, count, sizeof *r, by_lo);
    for (size_t i = 0; i < count; i++) {
        if (n > 0 && r[i].lo <= r[n - 1].hi + 1)
            r[n - 1].hi = BASE_MAX(r[n - 1].hi, r[i].hi);
        else
            r[n++] = r[i];
    }
    return n;
}

struct gexpr *gset_expr(struct arena *a, struct gset *s)
{
    struct gexpr *x = gexpr_new(a, GEXPR_SET);
    size_t n = tidy(s->range, s->count);
    x->ranges = arena_alloc(a, (n + 1) * sizeof *x->ranges);
    if (!s->negated) {
        memcpy(x->ranges, s->range, n * sizeof *x->ranges);
        x->ranges_count = n;
        return x;
    }
    uint32_t from = 0, end = s->ascii_only ? 0x7f : 0x10ffff;
    for (size_t i = 0; i < n && s->range[i].lo <= end; i++) {
        if (s->range[i].lo > from)
            x->ranges[x->ranges_count++] = (struct grange){from, s->range[i].lo - 1};
        from = s->range[i].hi + 1;
    }
    if (from <= end)
        x->ranges[x->ranges_count++] = (struct grange){from, end};
    return x;
}

/* ---- from trees to nodes ---------------------------------------------------------------------- */

static uint32_t emit_set(struct gbuild *b, const struct gexpr *x, bool json, uint32_t next)
{
    uint32_t out = GNODE_IDX_FAIL;
    for (size_t i = 0; i < x->ranges_count; i++) {
        struct grange r = x->ranges[i];
        out = gb_split(b, out, json ? gb_json_code_points(b, r.lo, r.hi, next)
                                    : gb_code_points(b, r.lo, r.hi, next));
    }
    return out;
}

static uint32_t emit_cat(struct gbuild *b, const struct gexpr *x, bool json, uint32_t next)
{
    size_t n = 0;
    for (const struct gexpr *c = x->child; c != NULL; c = c->sibling)
        n++;
    const struct gexpr **part = mem_array(n + 1, sizeof(*part));
    n = 0;
    for (const struct gexpr *c = x->child; c != NULL; c = c->sibling)
        part[n++] = c;
    while (n > 0)
        next = gexpr_emit(b, part[--n], json, next);
    free(part);
    return next;
}

static uint32_t emit_repeat(struct gbuild *b, const struct gexpr *x, bool json, uint32_t next)
{
    bool simple = x->child->kind == GEXPR_SET && x->child->ranges_count == 1 &&
                  x->child->ranges[0].hi < 0x80 && x->max <= 32;
    if (!simple && (x->min > 1 || (x->max > 1 && x->max != GEXPR_INF))) {
        uint32_t rule = gb_rule(b);
        gb_rule_set(b, rule, gexpr_emit(b, x->child, json, GNODE_IDX_END));
        return gb_repeat(b, rule, x->min, x->max, next);
    }
    uint32_t out = next;
    if (x->max == GEXPR_INF) {
        out = gb_loop(b);
        gb_loop_set(b, out, gexpr_emit(b, x->child, json, out), next);
    }
    for (uint32_t i = x->min; x->max != GEXPR_INF && i < x->max; i++)
        out = gb_split(b, gexpr_emit(b, x->child, json, out), next);
    for (uint32_t i = 0; i < x->min; i++)
        out = gexpr_emit(b, x->child, json, out);
    return out;
}

uint32_t gexpr_emit(struct gbuild *b, const struct gexpr *x, bool json, uint32_t next)
{
    uint32_t out = GNODE_IDX_FAIL;
    if (b->full)
        return GNODE_IDX_FAIL;
    switch (x->kind) {
    case GEXPR_SET:
        return emit_set(b, x, json, next);
    case GEXPR_ANY:
        return gb_call(b, gb_json(b, GJSON_CHAR), next);
    case GEXPR_CAT:
        return emit_cat(b, x, json, next);
    case GEXPR_ALT:
        for (const struct gexpr *c = x->child; c != NULL; c = c->sibling)
            out = gb_split(b, out, gexpr_emit(b, c, json, next));
        return out;
    case GEXPR_REPEAT:
        return emit_repeat(b, x, json, next);
    case GEXPR_CALL:
        return gb_call(b, x->rule, next);
    default: /* nothing, and anchors where they hold by themselves */
        return next;
    }
}

static bool read_count(const char **at, const char *end, uint32_t *ret)
{
    uint64_t v = 0;
    const char *p = *at;
    while (p < end && *p >= '0' && *p <= '9' && v < UINT32_MAX)
        v = v * 10 + (uint64_t)(*p++ - '0');
    if (p == *at || v >= UINT32_MAX)
        return false;
    *at = p;
    *ret = (uint32_t)v;
    return true;
}

bool gexpr_counts(const char **at, const char *end, uint32_t *min, uint32_t *max)
{
    const char *p = *at;
    if (!read_count(&p, end, min))
        return false;
    *max = *min;
    if (p < end && *p == ',') {
        p++;
        if (p < end && *p == '}')
            *max = GEXPR_INF;
        else if (!read_count(&p, end, max))
            return false;
    }
    if (p >= end || *p != '}' || *min > *max)
        return false;
    *at = p + 1;
    return true;
}

/* ---- reading a pattern ------------------------------------------------------------------------ */

struct pattern {
    struct arena arena;
    const char *start, *at, *end, *param;
    unsigned depth;
    struct err *e;
};

static struct gexpr *wrong(struct pattern *p, enum err_code code, const char *what)
{
    err_set_param(p->e, code, p->param, "'%s' has %s at character %zu of \"%.200s\"", p->param, what,
                  (size_t)(p->at - p->start), p->start);
    return NULL;
}

static bool next_is(const struct pattern *p, char c)
{
    return p->at < p->end && *p->at == c;
}

static bool read_hex(struct pattern *p, unsigned n, uint32_t *ret)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < n; i++) {
        int c = p->at + i < p->end ? p->at[i] : 0;
        int d = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (d < 0)
            return false;
        v = v * 16 + (uint32_t)d;
    }
    p->at += n;
    *ret = v;
    return true;
}

static bool add_class(struct gset *s, char which)
{
    static const struct grange digit[] = {{'0', '9'}};
    static const struct grange word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    static const struct grange space[] = {{'\t', '\r'}, {' ', ' '}};
    char kind = (char)(which | 32);
    const struct grange *r = kind == 'd' ? digit : kind == 'w' ? word : space;
    size_t n = kind == 'd' ? BASE_COUNT(digit) : kind == 'w' ? BASE_COUNT(word) : BASE_COUNT(space);
    s->ascii_only = true;
    if (which >= 'a') {
        for (size_t i = 0; i < n; i++)
            if (!gset_add(s, r[i].lo, r[i].hi))
                return false;
        return true;
    }
    uint32_t from = 0x20; /* no control characters: nobody means them */
    for (size_t i = 0; i < n; i++) {
        if (r[i].lo > from && !gset_add(s, from, r[i].lo - 1))
            return false;
        from = BASE_MAX(from, r[i].hi + 1);
    }
    return gset_add(s, from, 0x7e);
}

/* After a backslash: a class is added to `s` (true in *is_class), else the character is in *ret. */
static bool read_escape(struct pattern *p, struct gset *s, bool *is_class, uint32_t *ret)
{
    static const char from[] = "nrtfv0", to[] = "\n\r\t\f\v\0";
    *is_class = false;
    if (p->at == p->end)
        return wrong(p, ERR_INVALID, "a backslash with nothing behind it") != NULL;
    char c = *p->at;
    if (strchr("dDwWsS", c)) {
        p->at++;
        *is_class = true;
        return add_class(s, c) || wrong(p, ERR_UNSUPPORTED, "a class of too many ranges") != NULL;
    }
    const char *known = c ? strchr(from, c) : NULL;
    if (known != NULL) {
        p->at++;
        *ret = (uint8_t)to[known - from];
        return true;
    }
    if (c == 'x' || c == 'u') {
        p->at++;
        if (!read_hex(p, c == 'x' ? 2 : 4, ret) || (*ret >= 0xd800 && *ret <= 0xdfff))
            return wrong(p, ERR_UNSUPPORTED, "an escape that is not \\xHH or \\uHHHH of a character") != NULL;
        return true;
    }
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return wrong(p, ERR_UNSUPPORTED, "an escape that is not supported") != NULL;
    unsigned n = utf8_decode(p->at, (size_t)(p->end - p->at), ret);
    p->at += n;
    return n > 0 || wrong(p, ERR_INVALID, "bytes that are not UTF-8") != NULL;
}

/* One end of a range in a class, or a class inside it. */
static bool read_class_item(struct pattern *p, struct gset *s, bool *is_class, uint32_t *ret)
{
    *is_class = false;
    if (next_is(p, '\\')) {
        p->at++;
        if (next_is(p, 'b')) {
            p->at++;
            *ret = '\b';
            return true;
        }
        return read_escape(p, s, is_class, ret);
    }
    unsigned n = utf8_decode(p->at, (size_t)(p->end - p->at), ret);
    p->at += n;
    return n > 0 || wrong(p, ERR_INVALID, "bytes that are not UTF-8") != NULL;
}

static struct gexpr *read_class(struct pattern *p)
{
    struct gset s = {0};
    if (next_is(p, '^')) {
        s.negated = true;
        p->at++;
    }
    while (!next_is(p, ']')) {
        bool is_class, ends_in_class;
        uint32_t lo, hi;
        if (p->at == p->end)
            return wrong(p, ERR_INVALID, "a class without its ']'");
        if (!read_class_item(p, &s, &is_class, &lo))
            return NULL;
        hi = lo;
        if (!is_class && next_is(p, '-') && p->at + 1 < p->end && p->at[1] != ']') {
            p->at++;
            if (!read_class_item(p, &s, &ends_in_class, &hi))
                return NULL;
            if (ends_in_class || hi < lo)
                return wrong(p, ERR_INVALID, "a range whose end is before its start");
        }
        if (!is_class && !gset_add(&s, lo, hi))
            return wrong(p, ERR_UNSUPPORTED, "a class of too many ranges");
    }
    p->at++;
    return gset_expr(&p->arena, &s);
}

static struct gexpr *read_alternatives(struct pattern *p);

static struct gexpr *read_group(struct pattern *p)
{
    if (next_is(p, '?')) {
        if (p->at + 1 < p->end && p->at[1] == ':')
            p->at += 2;
        else if (p->at + 2 < p->end && p->at[1] == '<' && p->at[2] != '=' && p->at[2] != '!') {
            while (p->at < p->end && *p->at != '>')
                p->at++;
            p->at += p->at < p->end;
        } else
            return wrong(p, ERR_UNSUPPORTED, "a look-around or a flag, which is not supported,");
    }
    if (++p->depth > GRAMMAR_NEST_MAX)
        return wrong(p, ERR_UNSUPPORTED, "groups nested too deep");
    struct gexpr *x = read_alternatives(p);
    p->depth--;
    if (x == NULL)
        return NULL;
    if (!next_is(p, ')'))
        return wrong(p, ERR_INVALID, "a group without its ')'");
    p->at++;
    return x;
}

static struct gexpr *one_char(struct pattern *p, uint32_t cp)
{
    struct gset s = {.range = {{cp, cp}}, .count = 1};
    return gset_expr(&p->arena, &s);
}

static struct gexpr *read_atom(struct pattern *p)
{
    bool is_class;
    uint32_t cp;
    struct gset s = {0};
    char c = *p->at;
    if (c == '(' || c == '[') {
        p->at++;
        return c == '(' ? read_group(p) : read_class(p);
    }
    if (c == '.') { /* all but ECMA-262's line terminators */
        p->at++;
        s = (struct gset){.range = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}, .count = 3, .negated = true};
        return gset_expr(&p->arena, &s);
    }
    if (c == '^' || c == '$') {
        p->at++;
        return gexpr_new(&p->arena, c == '^' ? GEXPR_START : GEXPR_STOP);
    }
    if (strchr("*+?{", c))
        return wrong(p, ERR_INVALID, "a quantifier with nothing before it");
    if (c == '\\') {
        p->at++;
        if (!read_escape(p, &s, &is_class, &cp))
            return NULL;
        return is_class ? gset_expr(&p->arena, &s) : one_char(p, cp);
    }
    unsigned n = utf8_decode(p->at, (size_t)(p->end - p->at), &cp);
    if (n == 0)
        return wrong(p, ERR_INVALID, "bytes that are not UTF-8");
    p->at += n;
    return one_char(p, cp);
}

static bool may_be_empty(const struct gexpr *x)
{
    bool all = true, any = false;
    for (const struct gexpr *c = x->child; c; c = c->sibling) {
        bool empty = may_be_empty(c);
        all &= empty;
        any |= empty;
    }
    switch (x->kind) {
    case GEXPR_CAT:
        return all;
    case GEXPR_ALT:
        return any;
    case GEXPR_REPEAT:
        return x->min == 0 || all;
    default:
        return x->kind == GEXPR_EMPTY || x->kind == GEXPR_START || x->kind == GEXPR_STOP;
    }
}

struct gexpr *gexpr_repeat(struct arena *a, struct gexpr *x, uint32_t min, uint32_t max)
{
    bool empty = may_be_empty(x);
    if (empty && max != GEXPR_INF && max > GEXPR_EMPTY_REPEAT_MAX)
        return NULL;
    struct gexpr *r = gexpr_new(a, GEXPR_REPEAT);
    r->min = empty ? 0 : min;
    r->max = max;
    gexpr_add(r, x);
    return r;
}

static struct gexpr *read_quantified(struct pattern *p)
{
    struct gexpr *x = read_atom(p);
    if (x == NULL || p->at == p->end || !strchr("*+?{", *p->at))
        return x;
    uint32_t min = *p->at == '+', max = *p->at == '?' ? 1 : GEXPR_INF;
    char c = *p->at++;
    if (c == '{' && !gexpr_counts(&p->at, p->end, &min, &max))
        return wrong(p, ERR_INVALID, "a '{' that is no {m}, {m,} or {m,n}");
    if (min > GEXPR_REPEAT_MAX || (max != GEXPR_INF && max > GEXPR_REPEAT_MAX))
        return wrong(p, ERR_UNSUPPORTED, "a count that is too large");
    if (next_is(p, '?')) /* lazy: the same texts */
        p->at++;
    if (p->at < p->end && strchr("*+?{", *p->at))
        return wrong(p, ERR_UNSUPPORTED, "a quantifier after a quantifier");
    if (x->kind == GEXPR_START || x->kind == GEXPR_STOP)
        return wrong(p, ERR_UNSUPPORTED, "a quantifier after an anchor");
    struct gexpr *r = gexpr_repeat(&p->arena, x, min, max);
    return r ? r : wrong(p, ERR_UNSUPPORTED, "so large a count of what may be empty");
}

static struct gexpr *read_alternatives(struct pattern *p)
{
    struct gexpr *alt = gexpr_new(&p->arena, GEXPR_ALT);
    for (;;) {
        struct gexpr *cat = gexpr_new(&p->arena, GEXPR_CAT);
        while (p->at < p->end && *p->at != '|' && *p->at != ')') {
            struct gexpr *x = read_quantified(p);
            if (x == NULL)
                return NULL;
            gexpr_add(cat, x);
        }
        gexpr_add(alt, cat);
        if (!next_is(p, '|'))
            return alt;
        p->at++;
    }
}

/* Anchors mean something only at the ends of the outermost alternatives. */
static bool anchors_inside(const struct gexpr *x, bool outermost)
{
    for (const struct gexpr *c = x->child; c != NULL; c = c->sibling) {
        bool first = c == x->child, last = c->sibling == NULL;
        if (c->kind == GEXPR_START && !(outermost && first))
            return true;
        if (c->kind == GEXPR_STOP && !(outermost && last))
            return true;
        if (anchors_inside(c, false))
            return true;
    }
    return false;
}

/* A pattern is searched for: without an anchor, anything may stand on that side. */
static void open_ends(struct arena *a, struct gexpr *cat)
{
    struct gexpr *any[2];
    for (int i = 0; i < 2; i++) {
        any[i] = gexpr_new(a, GEXPR_REPEAT);
        any[i]->max = GEXPR_INF;
        gexpr_add(any[i], gexpr_new(a, GEXPR_ANY));
    }
    bool starts = cat->child != NULL && cat->child->kind == GEXPR_START;
    bool stops = cat->last != NULL && cat->last->kind == GEXPR_STOP;
    if (!stops)
        gexpr_add(cat, any[1]);
    if (!starts) {
        any[0]->sibling = cat->child;
        cat->child = any[0];
    }
}

enum err_code gb_pattern(struct gbuild *b, const char *pattern, size_t len, uint32_t next,
                         const char *param, uint32_t *ret, struct err *e)
{
    struct err mine = {0};
    struct pattern p = {.start = pattern, .at = pattern, .end = pattern + len, .param = param, .e = &mine};
    arena_init(&p.arena, 16 * BASE_KIB);
    struct gexpr *x = memchr(pattern, 0, len) != NULL ? wrong(&p, ERR_UNSUPPORTED, "a NUL character")
                                                      : read_alternatives(&p);
    if (x != NULL && p.at < p.end)
        x = wrong(&p, ERR_INVALID, "a ')' without its '('");
    for (struct gexpr *cat = x ? x->child : NULL; cat != NULL && x != NULL; cat = cat->sibling)
        if (anchors_inside(cat, true))
            x = wrong(&p, ERR_UNSUPPORTED, "an anchor in the middle, which is not supported; read");
    if (x != NULL) {
        for (struct gexpr *cat = x->child; cat != NULL; cat = cat->sibling)
            open_ends(&p.arena, cat);
        *ret = gexpr_emit(b, x, true, next);
    }
    arena_done(&p.arena);
    if (x == NULL && e != NULL)
        *e = mine;
    return x != NULL ? ERR_OK : mine.code;
}
