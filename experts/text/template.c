/* The template's public face: parse once, render many times from any thread, and the list of what
 * the language here has. */
#include "experts/experts.h"
#include "experts/text/template_priv.h"

#include <stdlib.h>
#include <string.h>

/* ---- parse ----------------------------------------------------------------------------------- */

static enum err_code parse_guarded(struct parse *p, const char *source, size_t len)
{
    if (setjmp(p->on_error) != 0)
        return p->code;
    lex_source(p, source, len);
    p->tok = p->tokens;
    parse_template(p);
    return ERR_OK;
}

enum err_code template_parse(const char *source, size_t len, struct chat_template **ret,
                             struct err *e)
{
    if (len > TEMPLATE_SOURCE_MAX)
        return err_set(e, ERR_TOO_LARGE, "a chat template of %zu bytes is too long (limit %d)", len,
                       TEMPLATE_SOURCE_MAX);
    if (!utf8_valid(source, len))
        return err_set(e, ERR_INVALID, "the chat template is not valid UTF-8");
    struct parse *p = mem_alloc(sizeof(*p));
    p->t = mem_alloc(sizeof(*p->t));
    p->e = e;
    enum err_code rc = parse_guarded(p, source, len);
    if (rc == ERR_OK)
        *ret = p->t;
    else
        template_close(&p->t);
    free(p->tokens);
    free(p);
    return rc;
}

void template_close(struct chat_template **t)
{
    if (*t == NULL)
        return;
    tree_done(*t);
    free((*t)->names);
    free((*t)->name_globals);
    free(*t);
    *t = NULL;
}

/* ---- render ---------------------------------------------------------------------------------- */

/* Only names that the template mentions can be seen, so only they are stored. */
static void set_global(struct rt *rt, const char *name, size_t len, struct value v)
{
    for (uint32_t i = 0; i < rt->t->names_count; i++) {
        const struct str *known = rt->t->names[i];
        if (known->len == len && memcmp(known->data, name, len) == 0)
            rt->globals[i] = v;
    }
}

static void set_text(struct rt *rt, const char *name, const char *text)
{
    if (text != NULL)
        set_global(rt, name, strlen(name), value_str(str_new(rt, text, strlen(text))));
}

static void set_json(struct rt *rt, const char *name, const char *json)
{
    struct value v = json == NULL ? value_none() : value_from_json(rt, json, name);
    set_global(rt, name, strlen(name), v);
}

static void set_context(struct rt *rt, const struct template_input *in)
{
    for (uint32_t i = 0; i < rt->t->names_count; i++) {
        if (rt->t->name_globals[i] != GLOBAL_NONE)
            rt->globals[i] =
                (struct value){.kind = VALUE_FUNCTION, .function = rt->t->name_globals[i]};
    }
    set_json(rt, "messages", in->messages_json);
    set_json(rt, "tools", in->tools_json);
    set_global(rt, "documents", 9, value_none());
    set_global(rt, "add_generation_prompt", 21, value_bool(in->add_generation_prompt));
    set_text(rt, "bos_token", in->bos_token);
    set_text(rt, "eos_token", in->eos_token);
    if (in->extra_json == NULL)
        return;
    struct value extra = value_from_json(rt, in->extra_json, "the template's extra variables");
    if (extra.kind != VALUE_DICT)
        rt_fail(rt, ERR_INVALID, "the template's extra variables must be a JSON object");
    for (uint32_t i = 0; i < extra.dict->count; i++) {
        const struct dict_entry *en = &extra.dict->entries[i];
        set_global(rt, en->key.str->data, en->key.str->len, en->value);
    }
}

static enum err_code render_guarded(struct rt *rt, const struct template_input *in)
{
    if (setjmp(rt->on_error) != 0)
        return rt->code;
    rt->globals = rt_array(rt, (size_t)rt->t->names_count + 1, sizeof(*rt->globals));
    set_context(rt, in);
    (void)exec_body(rt, &rt->t->body, NULL);
    return ERR_OK;
}

enum err_code template_render(const struct chat_template *t, const struct template_input *in,
                              struct buf *ret_text, struct err *e)
{
    struct rt *rt = mem_alloc(sizeof(*rt));
    rt->t = t;
    rt->e = e;
    rt->now = in->now;
    rt->out = ret_text;
    rt->out_base = ret_text->len;
    rt->line = 1;
    enum err_code rc = render_guarded(rt, in);
    if (rc != ERR_OK)
        ret_text->len = rt->out_base;
    rt_done(rt);
    free(rt);
    return rc;
}

/* ---- features -------------------------------------------------------------------------------- */

const char *const *template_features(void)
{
    static const char *const features[] = {
        "statements: if/elif/else, for/else with if, recursive, break and continue, set, set "
        "blocks, "
        "macro, call, filter, with, block, raw, generation, print, autoescape false",
        "expressions: literals, lists, tuples, dicts, attributes, subscripts, slices, calls with "
        "keywords, * and **, filters, tests, if-else, and/or/not, chained comparison, in, "
        "+ - * / // % ** ~",
        "loop: index, index0, revindex, revindex0, first, last, length, previtem, nextitem, cycle, "
        "changed, depth, depth0, recursion",
        "white space: trim_blocks, lstrip_blocks, - and + signs, the last newline goes",
        "globals: range, dict, namespace, cycler, joiner, raise_exception, strftime_now",
        "filters: abs, attr, batch, capitalize, center, count, d, default, dictsort, e, escape, "
        "filesizeformat, first, float, forceescape, format, groupby, indent, int, items, join, "
        "last, "
        "length, list, lower, map, max, min, reject, rejectattr, replace, reverse, round, safe, "
        "select, selectattr, slice, sort, string, striptags, sum, title, tojson, trim, truncate, "
        "unique, upper, urlencode, wordcount, xmlattr",
        "tests: boolean, callable, defined, divisibleby, eq, equalto, escaped, even, false, "
        "filter, "
        "float, ge, greaterthan, gt, in, integer, iterable, le, lessthan, lower, lt, mapping, ne, "
        "none, number, odd, sameas, sequence, string, test, true, undefined, upper, and the "
        "operators",
        "methods: those of Python's str (but encode, maketrans, translate), dict, list and tuple "
        "that "
        "change nothing",
        "not supported, and refused by name: include, import, from, extends, do, trans, "
        "autoescape true, required blocks; the filters pprint, random, urlize, wordwrap; whole "
        "numbers beyond 64 bits",
        "limits: 10 million steps, depth 1000, 16 MiB of text, 256 MiB of memory, ranges of 100000",
        NULL,
    };
    return features;
}
