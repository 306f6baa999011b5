/* GBNF, the notation of llama.cpp: `name ::= alternatives`, literals, classes, groups, repetition. A
 * rule ends with its line unless a group is open or the line ends in '|'. The text's rule is `root`. */
#include "experts/grammar.h"

#include <stdlib.h>
#include <string.h>

struct symbol {
    const char *name;
    size_t len;
    uint32_t rule;
    bool defined;
};

struct gbnf {
    struct gbuild build;
    struct arena arena;
    const char *start, *at, *end;
    struct symbol *symbols;
    size_t count, cap;
    uint32_t *slots;         /* open addressing: symbol + 1 by name */
    size_t slots_cap;
    unsigned depth;
    struct err *e;
};

static size_t line_of(const struct gbnf *g)
{
    size_t line = 1;
    for (const char *p = g->start; p < g->at; p++)
        line += *p == '\n';
    return line;
}

static void *wrong(struct gbnf *g, enum err_code code, const char *what)
{
    err_set_param(g->e, code, "grammar", "'grammar' has %s on line %zu", what, line_of(g));
    return NULL;
}

/* ---- names ----------------------------------------------------------------------------------- */

static void regrow(struct gbnf *g)
{
    free(g->slots);
    g->slots_cap = g->slots_cap ? 2 * g->slots_cap : 128;
    g->slots = mem_array(g->slots_cap, sizeof *g->slots);
    for (size_t i = 0; i < g->count; i++) {
        size_t at = hash64_of(g->symbols[i].name, g->symbols[i].len, 0) & (g->slots_cap - 1);
        while (g->slots[at] != 0)
            at = (at + 1) & (g->slots_cap - 1);
        g->slots[at] = (uint32_t)i + 1;
    }
}

static struct symbol *symbol(struct gbnf *g, const char *name, size_t len)
{
    if (2 * (g->count + 1) > g->slots_cap)
        regrow(g);
    size_t at = hash64_of(name, len, 0) & (g->slots_cap - 1);
    for (; g->slots[at] != 0; at = (at + 1) & (g->slots_cap - 1)) {
        struct symbol *s = &g->symbols[g->slots[at] - 1];
        if (s->len == len && memcmp(s->name, name, len) == 0)
            return s;
    }
    if (g->count == g->cap) {
        g->cap = g->cap ? 2 * g->cap : 64;
        g->symbols = mem_grow(g->symbols, g->cap, sizeof *g->symbols);
    }
    g->symbols[g->count] = (struct symbol){.name = name, .len = len, .rule = gb_rule(&g->build)};
    g->slots[at] = (uint32_t)g->count + 1;
    return &g->symbols[g->count++];
}

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static size_t name_len(const struct gbnf *g)
{
    size_t n = 0;
    while (g->at + n < g->end && is_name_char(g->at[n]))
        n++;
    return n;
}

static void skip_space(struct gbnf *g, bool lines)
{
    while (g->at < g->end) {
        if (*g->at == '#') {
            while (g->at < g->end && *g->at != '\n')
                g->at++;
        } else if (*g->at == ' ' || *g->at == '\t' || *g->at == '\r' || (lines && *g->at == '\n')) {
            g->at++;
        } else {
            return;
        }
    }
}

/* ---- literals and classes ----------------------------------------------------------------------- */

static bool read_hex(struct gbnf *g, unsigned n, uint32_t *ret)
{
    uint32_t v = 0;
    for (unsigned i = 0; i < n; i++) {
        int c = g->at + i < g->end ? g->at[i] : 0;
        int d = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (d < 0)
            return false;
        v = v * 16 + (uint32_t)d;
    }
    g->at += n;
    *ret = v;
    return v <= 0x10ffff && !(v >= 0xd800 && v <= 0xdfff);
}

/* One code point, escapes done. */
static bool read_char(struct gbnf *g, uint32_t *ret)
{
    static const char from[] = "nrt\"\\[]-^/'", to[] = "\n\r\t\"\\[]-^/'";
    unsigned n = utf8_decode(g->at, (size_t)(g->end - g->at), ret);
    if (n == 0)
        return wrong(g, ERR_INVALID, "bytes that are not UTF-8") != NULL;
    g->at += n;
    if (*ret != '\\')
        return true;
    char c = g->at < g->end ? *g->at++ : 0;
    const char *known = c ? strchr(from, c) : NULL;
    if (known != NULL)
        *ret = (uint8_t)to[known - from];
    else if (c == 'x' || c == 'u' || c == 'U')
        return read_hex(g, c == 'x' ? 2 : c == 'u' ? 4 : 8, ret) ||
               wrong(g, ERR_INVALID, "an escape that names no character") != NULL;
    else
        return wrong(g, ERR_INVALID, "an unknown escape") != NULL;
    return true;
}

static struct gexpr *read_literal(struct gbnf *g)
{
    struct gexpr *cat = gexpr_new(&g->arena, GEXPR_CAT);
    for (;;) {
        uint32_t cp;
        if (g->at == g->end || *g->at == '\n')
            return wrong(g, ERR_INVALID, "a string without its closing quote");
        if (*g->at == '"') {
            g->at++;
            return cat;
        }
        if (!read_char(g, &cp))
            return NULL;
        struct gset s = {.range = {{cp, cp}}, .count = 1};
        gexpr_add(cat, gset_expr(&g->arena, &s));
    }
}

static struct gexpr *read_class(struct gbnf *g)
{
    struct gset s = {0};
    if (g->at < g->end && *g->at == '^') {
        s.negated = true;
        g->at++;
    }
    for (;;) {
        uint32_t lo, hi;
        if (g->at == g->end || *g->at == '\n')
            return wrong(g, ERR_INVALID, "a class without its ']'");
        if (*g->at == ']') {
            g->at++;
            return gset_expr(&g->arena, &s);
        }
        if (!read_char(g, &lo))
            return NULL;
        hi = lo;
        if (g->at + 1 < g->end && *g->at == '-' && g->at[1] != ']') {
            g->at++;
            if (!read_char(g, &hi))
                return NULL;
        }
        if (hi < lo || !gset_add(&s, lo, hi))
            return wrong(g, ERR_INVALID, "a class with a reversed range or too many of them");
    }
}

/* ---- alternatives ---------------------------------------------------------------------------------- */

static struct gexpr *read_alternatives(struct gbnf *g, bool grouped);

static struct gexpr *read_atom(struct gbnf *g)
{
    char c = *g->at;
    size_t n = name_len(g);
    if (n > 0) {
        struct gexpr *x = gexpr_new(&g->arena, GEXPR_CALL);
        x->rule = symbol(g, g->at, n)->rule;
        g->at += n;
        return x;
    }
    g->at++;
    if (c == '"')
        return read_literal(g);
    if (c == '[')
        return read_class(g);
    if (c == '.') {
        struct gset s = {.negated = true};
        return gset_expr(&g->arena, &s);
    }
    if (c != '(')
        return wrong(g, ERR_INVALID, "something that is no name, string, class, '.' or group");
    if (++g->depth > GRAMMAR_NEST_MAX)
        return wrong(g, ERR_INVALID, "groups nested too deep");
    struct gexpr *x = read_alternatives(g, true);
    g->depth--;
    if (x != NULL && (g->at == g->end || *g->at != ')'))
        return wrong(g, ERR_INVALID, "a group without its ')'");
    g->at += x != NULL;
    return x;
}

static struct gexpr *repeat_of(struct gbnf *g, struct gexpr *x)
{
    char c = *g->at++;
    uint32_t min = c == '+', max = c == '?' ? 1 : GEXPR_INF;
    if (c == '{' && !gexpr_counts(&g->at, g->end, &min, &max))
        return wrong(g, ERR_INVALID, "a '{' that is no {m}, {m,} or {m,n}");
    if (min > GEXPR_REPEAT_MAX || (max != GEXPR_INF && max > GEXPR_REPEAT_MAX))
        return wrong(g, ERR_INVALID, "a count that is too large");
    struct gexpr *r = gexpr_repeat(&g->arena, x, min, max);
    return r ? r : wrong(g, ERR_UNSUPPORTED, "so large a count of what may be empty");
}

static struct gexpr *read_sequence(struct gbnf *g, bool grouped)
{
    struct gexpr *cat = gexpr_new(&g->arena, GEXPR_CAT);
    for (;;) {
        skip_space(g, grouped);
        if (g->at == g->end || *g->at == '\n' || *g->at == '|' || *g->at == ')')
            return cat;
        struct gexpr *x = read_atom(g);
        unsigned marks = 0;
        while (x != NULL && g->at < g->end && strchr("*+?{", *g->at)) {
            if (++marks > 8) /* each is a level of the tree */
                return wrong(g, ERR_INVALID, "too many quantifiers in a row");
            x = repeat_of(g, x);
        }
        if (x == NULL)
            return NULL;
        gexpr_add(cat, x);
    }
}

static struct gexpr *read_alternatives(struct gbnf *g, bool grouped)
{
    struct gexpr *alt = gexpr_new(&g->arena, GEXPR_ALT);
    for (;;) {
        struct gexpr *cat = read_sequence(g, grouped);
        if (cat == NULL)
            return NULL;
        gexpr_add(alt, cat);
        if (g->at == g->end || *g->at != '|')
            return alt;
        g->at++;
        skip_space(g, true);
    }
}

static bool read_rule(struct gbnf *g)
{
    size_t n = name_len(g);
    if (n == 0)
        return wrong(g, ERR_INVALID, "no rule name where one is due") != NULL;
    struct symbol *s = symbol(g, g->at, n);
    uint32_t rule = s->rule;
    if (s->defined)
        return wrong(g, ERR_INVALID, "a second rule of one name") != NULL;
    s->defined = true;
    g->at += n;
    skip_space(g, false);
    if (g->end - g->at < 3 || memcmp(g->at, "::=", 3) != 0)
        return wrong(g, ERR_INVALID, "no '::=' behind a rule's name") != NULL;
    g->at += 3;
    skip_space(g, true);
    struct gexpr *x = read_alternatives(g, false);
    if (x == NULL)
        return false;
    if (g->at < g->end && *g->at == ')')
        return wrong(g, ERR_INVALID, "a ')' without its '('") != NULL;
    gb_rule_set(&g->build, rule, gexpr_emit(&g->build, x, false, GNODE_IDX_END));
    return true;
}

/* ---- the whole -------------------------------------------------------------------------------------- */

static enum err_code check_symbols(const struct gbnf *g, struct err *e)
{
    for (size_t i = 0; i < g->count; i++)
        if (!g->symbols[i].defined)
            return err_set_param(e, ERR_INVALID, "grammar", "'grammar' uses the rule '%.*s' but has none of "
                                 "that name", (int)BASE_MIN(g->symbols[i].len, 64), g->symbols[i].name);
    return ERR_OK;
}

static enum err_code read_rules(struct gbnf *g, uint32_t *ret_root, struct err *e)
{
    skip_space(g, true);
    while (g->at < g->end && !g->build.full) {
        if (!read_rule(g))
            return g->e->code;
        skip_space(g, true);
    }
    *ret_root = symbol(g, "root", 4)->rule;
    return g->build.full ? ERR_OK : check_symbols(g, e);
}

enum err_code grammar_compile_gbnf(const char *text, size_t len, struct grammar **ret, struct err *e)
{
    struct err mine = {0};
    uint32_t root = 0;
    struct gbnf g = {.start = text, .at = text, .end = text + len, .e = &mine};
    if (len > GRAMMAR_TEXT_MAX)
        return err_set_param(e, ERR_INVALID, "grammar", "'grammar' has %zu bytes; the limit is %zu", len,
                             GRAMMAR_TEXT_MAX);
    if (memchr(text, 0, len) != NULL)
        return err_set_param(e, ERR_INVALID, "grammar", "'grammar' has a NUL character");
    gb_init(&g.build);
    arena_init(&g.arena, 64 * BASE_KIB);
    enum err_code code = read_rules(&g, &root, &mine);
    if (code == ERR_OK)
        code = gb_finish(&g.build, root, "grammar", ret, &mine);
    gb_done(&g.build);
    arena_done(&g.arena);
    free(g.symbols);
    free(g.slots);
    if (code != ERR_OK && e != NULL)
        *e = mine;
    return code;
}
