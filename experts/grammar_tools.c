/* Tool calls as a grammar: what a model may write when it may, or must, call one of the client's functions.
 * Calls are written as marker, open, NAME, middle, ARGUMENTS, end; arguments are a JSON Schema. Where text may
 * come first, it is any text in which the marker does not occur: the marker begins a call, and from there on
 * only a call of the right shape can come. */
#include <stdlib.h>
#include <string.h>

#include "experts/grammar_schema.h"

#define CALLS_MAX 32U

/* ---- arguments ------------------------------------------------------------------------------- */

static enum err_code use_root(struct schema *s, const char *json, size_t len, const char *param)
{
    json_error_t where;
    if (len > GRAMMAR_TEXT_MAX)
        return err_set_param(s->e, ERR_INVALID, param, "'%s' has %zu bytes; the limit is %zu", param, len,
                             GRAMMAR_TEXT_MAX);
    s->root = json_loadb(json, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &where);
    if (s->root == NULL)
        return err_set_param(s->e, ERR_INVALID, param, "'%s' is not JSON: %s", param, where.text);
    json_array_append_new(s->made, s->root); /* rules are found by address: it stays */
    buf_clear(&s->path);
    buf_puts(&s->path, param);
    return ERR_OK;
}

/* A function whose schema must not hold, and cannot be compiled, takes any object. */
static enum err_code arguments_rule(struct schema *s, const struct grammar_tool *t, uint32_t *ret)
{
    *ret = gb_json(&s->build, GJSON_OBJECT);
    if (t->schema == NULL)
        return ERR_OK;
    uint32_t rule = 0;
    enum err_code code = use_root(s, t->schema, strlen(t->schema), t->param);
    if (code == ERR_OK && json_object_size(s->root) == 0)
        return ERR_OK;
    if (code == ERR_OK)
        code = schema_rule(s, s->root, &rule);
    if (code == ERR_OK)
        *ret = rule;
    return code == ERR_UNSUPPORTED && !t->must_hold ? ERR_OK : code;
}

/* NAME middle ARGUMENTS of any of the functions, as one rule. */
static enum err_code call_rule(struct schema *s, const struct grammar_tools *o, uint32_t *ret)
{
    struct gbuild *b = &s->build;
    uint32_t out = GNODE_IDX_FAIL;
    for (size_t i = 0; i < o->count; i++) {
        uint32_t args = 0;
        enum err_code code = arguments_rule(s, &o->tools[i], &args);
        if (code != ERR_OK)
            return code;
        uint32_t node = gb_text(b, o->form->middle, strlen(o->form->middle),
                                gb_call(b, args, GNODE_IDX_END));
        out = gb_split(b, out, gb_text(b, o->tools[i].name, strlen(o->tools[i].name), node));
    }
    *ret = gb_rule(b);
    if (!b->full)
        gb_rule_set(b, *ret, out);
    return ERR_OK;
}

/* The rest of the first call when all up to its arguments stands in the prompt. */
static enum err_code first_arguments(struct schema *s, const struct grammar_tools *o, uint32_t next,
                                     uint32_t *ret)
{
    size_t len = strlen(o->form->middle);
    uint32_t args = 0;
    enum err_code code = arguments_rule(s, &o->tools[0], &args);
    *ret = gb_call(&s->build, args, next);
    if (o->form->middle[len - 1] == ' ')
        *ret = gb_byte(&s->build, ' ', ' ', *ret);
    return code;
}

/* ---- calls one after the other --------------------------------------------------------------------- */

/* What follows a call when `more` others may come. */
static uint32_t after_call(struct gbuild *b, const struct grammar_tools *o, uint32_t call, uint32_t more)
{
    const struct grammar_call_form *f = o->form;
    uint32_t last = GNODE_IDX_END;
    if (more > 0) {
        uint32_t next = gb_call(b, call, after_call(b, o, call, more - 1));
        next = gb_text(b, f->again, strlen(f->again), next);
        last = gb_split(b, last, gb_text(b, f->between, strlen(f->between), next));
    }
    uint32_t end = gb_text(b, f->end, strlen(f->end), last);
    return f->end[0] != 0 ? gb_split(b, GNODE_IDX_END, end) : last;
}

/* ---- text before them -------------------------------------------------------------------------------- */

/* Knuth, Morris and Pratt's automaton over the marker: after[k][byte] for k bytes of it read. */
static void marker_automaton(const char *marker, size_t len, uint16_t (*after)[256])
{
    size_t fallback = 0;
    memset(after[0], 0, sizeof after[0]);
    for (size_t k = 0; k < len; k++) {
        if (k > 0)
            memcpy(after[k], after[fallback], sizeof after[k]);
        if (k > 0)
            fallback = after[fallback][(uint8_t)marker[k]];
        after[k][(uint8_t)marker[k]] = (uint16_t)(k + 1);
    }
}

/* Once an anchored marker was missed it never comes: state `len + 1` takes everything. */
static void anchored_automaton(const char *marker, size_t len, uint16_t (*after)[256])
{
    for (size_t k = 0; k < len; k++) {
        for (size_t c = 0; c < 256; c++)
            after[k][c] = (uint16_t)(len + 1);
        after[k][(uint8_t)marker[k]] = (uint16_t)(k + 1);
    }
    for (size_t c = 0; c < 256; c++)
        after[len + 1][c] = (uint16_t)(len + 1);
}

static uint32_t edges_of(struct gbuild *b, const uint16_t *after, const uint32_t *node)
{
    uint32_t out = GNODE_IDX_FAIL;
    for (unsigned lo = 0, hi; lo < 256; lo = hi + 1) {
        hi = lo;
        while (hi < 255 && after[hi + 1] == after[lo])
            hi++;
        out = gb_split(b, out, gb_byte(b, (uint8_t)lo, (uint8_t)hi, node[after[lo]]));
    }
    return out;
}

#define MARKER_BYTES_MAX 32U

static uint32_t text_then(struct gbuild *b, const struct grammar_call_form *f, uint32_t calls)
{
    uint16_t after[MARKER_BYTES_MAX + 2][256];
    uint32_t node[MARKER_BYTES_MAX + 2];
    size_t len = strlen(f->marker), states = len + (f->anchored ? 2 : 0);
    if (f->anchored)
        anchored_automaton(f->marker, len, after);
    else
        marker_automaton(f->marker, len, after);
    for (size_t k = 0; k < states; k++)
        node[k] = gb_loop(b);
    node[len] = calls;
    for (size_t k = 0; k < states && !b->full; k++)
        if (k != len)
            gb_loop_set(b, node[k], GNODE_IDX_END, edges_of(b, after[k], node));
    return node[0];
}

/* The answer without a call: of a form of its own, or any text. */
static enum err_code text_or_calls(struct schema *s, const struct grammar_tools *o, uint32_t calls,
                                   uint32_t *ret)
{
    struct gbuild *b = &s->build;
    const struct grammar_call_form *f = o->form;
    uint32_t rule = gb_json(b, GJSON_OBJECT);
    if (!o->answer_is_json) {
        *ret = text_then(b, f, calls);
        return ERR_OK;
    }
    if (o->answer_schema != NULL) {
        enum err_code code = use_root(s, o->answer_schema, strlen(o->answer_schema), o->answer_param);
        if (code == ERR_OK)
            code = schema_rule(s, s->root, &rule);
        if (code != ERR_OK)
            return code;
    }
    *ret = gb_split(b, gb_call(b, rule, GNODE_IDX_END), gb_text(b, f->marker, strlen(f->marker), calls));
    return ERR_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------ */

static enum err_code compile(struct schema *s, const struct grammar_tools *o, struct grammar **ret)
{
    struct gbuild *b = &s->build;
    uint32_t call = 0, root = gb_rule(b), more = BASE_MIN(BASE_MAX(o->calls_max, 1), CALLS_MAX) - 1;
    enum err_code code = call_rule(s, o, &call);
    if (code != ERR_OK)
        return code;
    /* One call that generation begins inside of needs nothing behind it. */
    bool bare = more == 0 && o->start != GRAMMAR_TOOLS_AT_TEXT;
    uint32_t after = bare ? GNODE_IDX_END : after_call(b, o, call, more), entry = gb_call(b, call, after);
    if (o->start == GRAMMAR_TOOLS_AT_ARGUMENTS)
        code = first_arguments(s, o, after, &entry);
    else if (o->start == GRAMMAR_TOOLS_AT_TEXT)
        code = text_or_calls(s, o, gb_text(b, o->form->open, strlen(o->form->open), entry), &entry);
    if (code != ERR_OK)
        return code;
    if (!b->full)
        gb_rule_set(b, root, entry);
    return gb_finish(b, root, "tools", ret, s->e);
}

enum err_code grammar_compile_tools(const struct grammar_tools *opt, struct grammar **ret, struct err *e)
{
    struct err mine = {0};
    struct schema s = {.e = &mine};
    gb_init(&s.build);
    s.made = json_array();
    enum err_code code = compile(&s, opt, ret);
    gb_done(&s.build);
    json_decref(s.made);
    buf_done(&s.path);
    free(s.memo);
    if (code != ERR_OK && e != NULL)
        *e = mine;
    return code;
}
