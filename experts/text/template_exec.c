/* Running statements: output, scopes, loops and macros.
 *
 * Scopes follow Jinja: the bodies of for, macro, call, filter, with and set blocks are scopes of
 * their own, that of if is not. A name set inside is gone outside; namespaces are the way out. */
#include "experts/text/template_priv.h"

#include <string.h>

static struct frame *frame_new(struct rt *rt, struct frame *parent)
{
    struct frame *f = rt_alloc(rt, sizeof(*f));
    f->parent = parent;
    return f;
}

static void write_out(struct rt *rt, const char *data, size_t len)
{
    if (len > TEMPLATE_OUTPUT_MAX - (rt->out->len - rt->out_base))
        rt_fail(rt, ERR_TOO_LARGE, "the text is longer than %zu MiB", TEMPLATE_OUTPUT_MAX >> 20);
    buf_append(rt->out, data, len);
}

static void print_value(struct rt *rt, struct value v)
{
    if (v.kind == VALUE_STR) {
        write_out(rt, v.str->data, v.str->len);
    } else if (v.kind != VALUE_UNDEFINED) {
        struct str *s = value_to_str(rt, &v);
        write_out(rt, s->data, s->len);
    }
}

struct str *exec_capture(struct rt *rt, const struct body *b, struct frame *f, enum flow *ret_flow)
{
    size_t from = rt->out->len;
    *ret_flow = exec_body(rt, b, f);
    struct str *s = str_from_buf(rt, rt->out, from);
    rt->out->len = from;
    return s;
}

/* A filter block's or set block's filters, applied to what its body wrote. */
static struct value apply_filters(struct rt *rt, struct frame *f, const struct expr *x,
                                  struct value input)
{
    if (x == NULL)
        return input;
    struct value in = apply_filters(rt, f, x->a, input);
    struct args a = eval_args(rt, f, x->args);
    rt->line = x->line;
    return x->filter->fn(rt, in, &a);
}

/* ---- loops ----------------------------------------------------------------------------------- */

/* The items that pass a for's `if`, taken one at a time. */
struct filtered {
    const struct stmt *stmt;
    struct frame *frame;
};

static bool next_filtered(struct rt *rt, struct iter *it, struct value *ret)
{
    const struct filtered *s = it->state;
    while (iter_next(rt, it->inner, ret)) {
        struct frame *f = frame_new(rt, s->frame);
        assign(rt, f, s->stmt->target, *ret);
        struct value keep = eval(rt, f, s->stmt->test);
        if (value_truthy(&keep))
            return true;
    }
    return false;
}

static struct iter *filter_items(struct rt *rt, const struct stmt *s, struct frame *f,
                                 struct iter *inner)
{
    struct filtered *state = rt_alloc(rt, sizeof(*state));
    *state = (struct filtered){s, f};
    struct iter *it = rt_alloc(rt, sizeof(*it));
    it->next = next_filtered;
    it->name = "loop filter";
    it->inner = inner;
    it->state = state;
    return it;
}

static bool loop_next(struct rt *rt, struct loop *l, struct value *ret)
{
    if (l->has_after) {
        *ret = l->after;
        l->has_after = false;
    } else if (!iter_next(rt, l->iter, ret)) {
        return false;
    }
    l->index0++;
    l->before = l->current;
    l->current = *ret;
    return true;
}

/* Look one item ahead; false at the end. */
static bool loop_peek(struct rt *rt, struct loop *l)
{
    if (!l->has_after)
        l->has_after = iter_next(rt, l->iter, &l->after);
    return l->has_after;
}

/* A generator has no length: it is read to its end, and the loop goes on over what was read. */
static int64_t loop_length(struct rt *rt, struct loop *l)
{
    if (l->length < 0 && !value_length(&l->iterable, &l->length)) {
        struct list *rest = list_of(rt, value_iter(l->iter));
        l->length = rest->count + l->index0 + 1 + l->has_after;
        l->iter = iter_of(rt, value_list(rest));
    }
    return l->length;
}

/* True if a round ran to its end: a loop whose rounds were all left by break or continue counts as
 * one without items, and its else runs, as in Jinja. The scope is emptied for each round, not made
 * anew. */
static bool run_rounds(struct rt *rt, const struct stmt *s, struct loop *l, struct frame *f)
{
    struct value item;
    bool completed = false;
    while (loop_next(rt, l, &item)) {
        f->count = 0;
        frame_set(rt, f, s->name, (struct value){.kind = VALUE_LOOP, .loop = l});
        assign(rt, f, s->target, item);
        enum flow flow = exec_body(rt, &s->body, f);
        if (flow == FLOW_BREAK)
            break;
        completed |= flow == FLOW_NEXT;
    }
    return completed;
}

static enum flow run_loop(struct rt *rt, const struct stmt *s, struct frame *outer,
                          struct value iterable, uint32_t depth0)
{
    struct loop *l = rt_alloc(rt, sizeof(*l));
    *l = (struct loop){.stmt = s,
                       .outer = outer,
                       .iterable = iterable,
                       .index0 = -1,
                       .length = -1,
                       .depth0 = depth0};
    l->iter = iter_of(rt, iterable);
    if (s->test != NULL) {
        l->iter = filter_items(rt, s, outer, l->iter);
        l->iterable = value_iter(l->iter);
    }
    if (!run_rounds(rt, s, l, frame_new(rt, outer)))
        return exec_body(rt, &s->otherwise, frame_new(rt, outer));
    return FLOW_NEXT;
}

struct value loop_recurse(struct rt *rt, struct loop *l, struct value iterable)
{
    if (!l->stmt->recursive)
        rt_fail(rt, ERR_INVALID, "a loop must be marked 'recursive' to be called");
    size_t from = rt->out->len;
    (void)run_loop(rt, l->stmt, l->outer, iterable, l->depth0 + 1);
    struct str *s = str_from_buf(rt, rt->out, from);
    rt->out->len = from;
    return value_str(s);
}

void loop_repr(struct rt *rt, struct loop *l, struct buf *out)
{
    buf_printf(out, "<LoopContext %lld/%lld>", (long long)l->index0 + 1,
               (long long)loop_length(rt, l));
}

static struct value loop_cycle(struct rt *rt, struct value self, const struct args *a)
{
    if (a->count == 0 || a->named_count > 0)
        rt_fail(rt, ERR_INVALID, "loop.cycle needs items to cycle through");
    return a->items[self.loop->index0 % a->count];
}

static struct value loop_changed(struct rt *rt, struct value self, const struct args *a)
{
    struct loop *l = self.loop;
    struct list *now = list_new(rt, a->count);
    for (uint32_t i = 0; i < a->count; i++)
        list_push(rt, now, a->items[i]);
    struct value v = value_tuple(now);
    if (l->has_changed && value_equal(rt, &l->changed, &v))
        return value_bool(false);
    l->has_changed = true;
    l->changed = v;
    return value_bool(true);
}

static struct value loop_method(struct rt *rt, struct value self, const struct method_def *def)
{
    struct method *m = rt_alloc(rt, sizeof(*m));
    *m = (struct method){self, def};
    return (struct value){.kind = VALUE_METHOD, .method = m};
}

static struct value loop_number(struct rt *rt, struct loop *l, const struct str *name)
{
    if (str_is(name, "index"))
        return value_int(l->index0 + 1);
    if (str_is(name, "index0"))
        return value_int(l->index0);
    if (str_is(name, "revindex"))
        return value_int(loop_length(rt, l) - l->index0);
    if (str_is(name, "revindex0"))
        return value_int(loop_length(rt, l) - l->index0 - 1);
    if (str_is(name, "length"))
        return value_int(loop_length(rt, l));
    if (str_is(name, "depth"))
        return value_int((int64_t)l->depth0 + 1);
    if (str_is(name, "depth0"))
        return value_int(l->depth0);
    return (struct value){.kind = VALUE_MISSING};
}

struct value loop_attr(struct rt *rt, struct value self, const struct str *name)
{
    static const struct method_def cycle = {"cycle", loop_cycle};
    static const struct method_def changed = {"changed", loop_changed};
    struct loop *l = self.loop;
    if (str_is(name, "first"))
        return value_bool(l->index0 == 0);
    if (str_is(name, "last"))
        return value_bool(!loop_peek(rt, l));
    if (str_is(name, "previtem"))
        return l->index0 == 0 ? value_undefined_hint(rt, "there is no previous item") : l->before;
    if (str_is(name, "nextitem"))
        return loop_peek(rt, l) ? l->after : value_undefined_hint(rt, "there is no next item");
    if (str_is(name, "cycle"))
        return loop_method(rt, self, &cycle);
    if (str_is(name, "changed"))
        return loop_method(rt, self, &changed);
    return loop_number(rt, l, name);
}

/* ---- macros ---------------------------------------------------------------------------------- */

void macro_repr(const struct macro *m, struct buf *out)
{
    buf_puts(out, m->stmt->kind == STMT_MACRO ? "<Macro>" : "<Macro 'caller'>");
}

/* The value of a keyword argument, which is then used up. */
static bool take_named(const struct args *a, bool *used, const struct str *name, struct value *ret)
{
    for (uint32_t i = 0; i < a->named_count; i++) {
        if (!used[i] && str_equal(a->named[i].name, name)) {
            used[i] = true;
            *ret = a->named[i].value;
            return true;
        }
    }
    return false;
}

static void bind_params(struct rt *rt, const struct macro *m, const struct args *a, bool *used,
                        struct frame *f)
{
    const struct signature *sig = m->stmt->sig;
    for (uint32_t i = 0; i < sig->count; i++) {
        const struct str *name = rt->t->names[sig->params[i]];
        struct value v = {.kind = VALUE_MISSING};
        if (i < a->count)
            v = a->items[i];
        else if (!take_named(a, used, name, &v) && sig->defaults[i] != NULL)
            v = eval(rt, f, sig->defaults[i]);
        else if (v.kind == VALUE_MISSING)
            v = value_undefined_hint(rt, "a parameter of a macro was not given");
        frame_set(rt, f, sig->params[i], v);
    }
}

static uint32_t name_of(struct rt *rt, const char *name)
{
    const struct chat_template *t = rt->t;
    for (uint32_t i = 0; i < t->names_count; i++) {
        if (str_is(t->names[i], name))
            return i;
    }
    return 0; /* not reached: the body mentions the name, or it would not be asked for */
}

static void bind_varargs(struct rt *rt, const struct macro *m, const struct args *a,
                         struct frame *f)
{
    const struct signature *sig = m->stmt->sig;
    if (!sig->uses_varargs) {
        if (a->count > sig->count)
            rt_fail(rt, ERR_INVALID, "a macro takes not more than %u argument(s)", sig->count);
        return;
    }
    struct list *rest = list_new(rt, 0);
    for (uint32_t i = sig->count; i < a->count; i++)
        list_push(rt, rest, a->items[i]);
    frame_set(rt, f, name_of(rt, "varargs"), value_tuple(rest));
}

static void bind_kwargs(struct rt *rt, const struct macro *m, const struct args *a,
                        const bool *used, struct frame *f)
{
    struct dict *rest = dict_new(rt, 0);
    for (uint32_t i = 0; i < a->named_count; i++) {
        if (used[i])
            continue;
        struct str *name = str_wrap(rt, a->named[i].name->data, a->named[i].name->len);
        if (!m->stmt->sig->uses_kwargs)
            rt_fail(rt, ERR_INVALID, "a macro takes no keyword argument '%.*s'",
                    (int)BASE_MIN(name->len, 60u), name->data);
        dict_put(rt, rest, value_str(name), a->named[i].value);
    }
    if (m->stmt->sig->uses_kwargs)
        frame_set(rt, f, name_of(rt, "kwargs"), value_dict(rest));
}

static void bind_caller(struct rt *rt, const struct macro *m, const struct args *a, bool *used,
                        struct frame *f)
{
    const struct signature *sig = m->stmt->sig;
    if (!sig->uses_caller)
        return;
    uint32_t name = name_of(rt, "caller");
    for (uint32_t i = 0; i < sig->count; i++) {
        if (sig->params[i] == name)
            return; /* it is a parameter like any other */
    }
    struct value v;
    if (!take_named(a, used, rt->t->names[name], &v) || v.kind == VALUE_NONE)
        v = value_undefined_hint(rt, "no caller defined");
    frame_set(rt, f, name, v);
}

struct value macro_call(struct rt *rt, struct macro *m, const struct args *a)
{
    struct frame *f = frame_new(rt, m->frame);
    bool *used = rt_array(rt, (size_t)a->named_count + 1, sizeof(*used));
    bind_params(rt, m, a, used, f);
    bind_caller(rt, m, a, used, f);
    bind_kwargs(rt, m, a, used, f);
    bind_varargs(rt, m, a, f);
    int32_t line = rt->line;
    enum flow flow;
    struct str *s = exec_capture(rt, &m->stmt->body, f, &flow);
    rt->line = line;
    return value_str(s);
}

static struct value macro_value(struct rt *rt, const struct stmt *s, struct frame *f)
{
    struct macro *m = rt_alloc(rt, sizeof(*m));
    *m = (struct macro){s, f};
    return (struct value){.kind = VALUE_MACRO, .macro = m};
}

/* {% call f(...) %}: f gets the block as the keyword argument caller. */
static void exec_call(struct rt *rt, const struct stmt *s, struct frame *f)
{
    struct value callee = eval(rt, f, s->expr->a);
    struct args a = eval_args(rt, f, s->expr->args);
    struct named *named = rt_array(rt, (size_t)a.named_count + 1, sizeof(*named));
    for (uint32_t i = 0; i < a.named_count; i++)
        named[i] = a.named[i];
    named[a.named_count++] = (struct named){str_wrap(rt, "caller", 6), macro_value(rt, s, f)};
    a.named = named;
    rt->line = s->line;
    print_value(rt, call_value(rt, callee, &a));
}

/* ---- statements ------------------------------------------------------------------------------ */

static enum flow exec_if(struct rt *rt, const struct stmt *s, struct frame *f)
{
    for (const struct branch *b = s->branches; b != NULL; b = b->next) {
        struct value test = {.kind = VALUE_MISSING};
        if (b->test != NULL)
            test = eval(rt, f, b->test);
        if (b->test == NULL || value_truthy(&test))
            return exec_body(rt, &b->body, f);
    }
    return FLOW_NEXT;
}

static enum flow exec_set_block(struct rt *rt, const struct stmt *s, struct frame *f)
{
    enum flow flow;
    struct str *text = exec_capture(rt, &s->body, frame_new(rt, f), &flow);
    if (flow == FLOW_NEXT)
        assign(rt, f, s->target, apply_filters(rt, f, s->expr, value_str(text)));
    return flow;
}

static enum flow exec_filter(struct rt *rt, const struct stmt *s, struct frame *f)
{
    enum flow flow;
    struct frame *inner = frame_new(rt, f);
    struct str *text = exec_capture(rt, &s->body, inner, &flow);
    if (flow == FLOW_NEXT)
        print_value(rt, apply_filters(rt, inner, s->expr, value_str(text)));
    return flow;
}

static enum flow exec_with(struct rt *rt, const struct stmt *s, struct frame *f)
{
    struct frame *inner = frame_new(rt, f);
    for (uint32_t i = 0; i < s->count; i++)
        assign(rt, inner, s->targets[i], eval(rt, f, s->values[i]));
    return exec_body(rt, &s->body, inner);
}

static enum flow exec_stmt(struct rt *rt, const struct stmt *s, struct frame *f)
{
    switch (s->kind) {
    case STMT_DATA:
        write_out(rt, s->data, s->len);
        return FLOW_NEXT;
    case STMT_PRINT:
        print_value(rt, eval(rt, f, s->expr));
        return FLOW_NEXT;
    case STMT_IF:
        return exec_if(rt, s, f);
    case STMT_FOR:
        return run_loop(rt, s, f, eval(rt, f, s->expr), 0);
    case STMT_SET:
        assign(rt, f, s->target, eval(rt, f, s->expr));
        return FLOW_NEXT;
    case STMT_SET_BLOCK:
        return exec_set_block(rt, s, f);
    case STMT_MACRO:
        frame_set(rt, f, s->name, macro_value(rt, s, f));
        return FLOW_NEXT;
    case STMT_CALL:
        exec_call(rt, s, f);
        return FLOW_NEXT;
    case STMT_FILTER:
        return exec_filter(rt, s, f);
    case STMT_WITH:
        return exec_with(rt, s, f);
    case STMT_SCOPE:
        return exec_body(rt, &s->body, frame_new(rt, f));
    case STMT_BLOCK:
        return exec_body(rt, &s->body, frame_new(rt, NULL));
    case STMT_BREAK:
        return FLOW_BREAK;
    case STMT_CONTINUE:
        return FLOW_CONTINUE;
    }
    return FLOW_NEXT;
}

enum flow exec_body(struct rt *rt, const struct body *b, struct frame *f)
{
    enum flow flow = FLOW_NEXT;
    rt_enter(rt);
    for (const struct stmt *s = b->first; s != NULL && flow == FLOW_NEXT; s = s->next) {
        rt_steps(rt, 1);
        rt->line = s->line;
        flow = exec_stmt(rt, s, f);
    }
    rt_leave(rt);
    return flow;
}
