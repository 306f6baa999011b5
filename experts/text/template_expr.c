/* Expressions of the template language, by Jinja's precedences: if-else, or, and, not, comparison,
 * + -, ~, * / // %, **, unary, then postfix and filters. */
#include "experts/text/template_priv.h"

#include <string.h>

/* Operator chains make trees that lean to the left; evaluating one recurses as deep as it is high.
 */
enum { EXPR_HEIGHT_MAX = 400, ITEMS_MAX = 4096 };

static struct expr *expr_new(struct parse *p, enum expr_kind kind, int32_t line)
{
    struct expr *x = parse_alloc(p, sizeof(*x));
    x->kind = kind;
    x->line = line;
    return x;
}

static void hang(struct parse *p, struct expr *x, const struct expr *child)
{
    if (child == NULL)
        return;
    x->height = BASE_MAX(x->height, child->height + 1);
    if (x->height > EXPR_HEIGHT_MAX)
        parse_fail(p, ERR_UNSUPPORTED, x->line, "an expression is nested more than %d deep",
                   EXPR_HEIGHT_MAX);
}

static struct expr *expr_unary(struct parse *p, enum expr_kind kind, struct expr *a, int32_t line)
{
    struct expr *x = expr_new(p, kind, line);
    x->a = a;
    hang(p, x, a);
    return x;
}

static struct expr *expr_binary(struct parse *p, enum expr_kind kind, int op, struct expr *a,
                                struct expr *b)
{
    struct expr *x = expr_unary(p, kind, a, a->line);
    x->op = op;
    x->b = b;
    hang(p, x, b);
    return x;
}

static struct expr *expr_const(struct parse *p, struct value v, int32_t line)
{
    struct expr *x = expr_new(p, EXPR_CONST, line);
    x->value = v;
    return x;
}

/* A growing list of children while they are parsed; it is copied into the tree at the end. */
struct items {
    struct expr **at;
    uint32_t count, cap;
};

static void items_push(struct parse *p, struct items *l, struct expr *x)
{
    if (l->count == l->cap) {
        if (l->cap >= ITEMS_MAX)
            parse_fail(p, ERR_UNSUPPORTED, x->line, "more than %d items", ITEMS_MAX);
        uint32_t cap = l->cap == 0 ? 4 : l->cap * 2;
        struct expr **at = parse_alloc(p, cap * sizeof(struct expr *));
        for (uint32_t i = 0; i < l->count; i++)
            at[i] = l->at[i];
        l->at = at;
        l->cap = cap;
    }
    l->at[l->count++] = x;
}

static void hang_items(struct parse *p, struct expr *x, const struct items *l)
{
    x->items = l->at;
    x->count = l->count;
    for (uint32_t i = 0; i < l->count; i++)
        hang(p, x, l->at[i]);
}

/* ---- calls ----------------------------------------------------------------------------------- */

struct keywords {
    struct keyword *at;
    uint32_t count, cap;
};

static void keywords_push(struct parse *p, struct keywords *l, struct keyword k)
{
    if (l->count == l->cap) {
        uint32_t cap = l->cap == 0 ? 4 : l->cap * 2;
        struct keyword *at = parse_alloc(p, cap * sizeof(*at));
        for (uint32_t i = 0; i < l->count; i++)
            at[i] = l->at[i];
        l->at = at;
        l->cap = cap;
    }
    l->at[l->count++] = k;
}

static void ensure_order(struct parse *p, bool ok, int32_t line)
{
    if (!ok)
        parse_fail(p, ERR_INVALID, line, "the arguments of a call are in the wrong order");
}

static void parse_one_arg(struct parse *p, struct call_args *a, struct items *items,
                          struct keywords *named)
{
    int32_t line = p->tok->line;
    if (parse_skip_op(p, '*')) {
        ensure_order(p, a->star == NULL && a->star_star == NULL, line);
        a->star = parse_expression(p);
    } else if (parse_skip_op(p, OP2('*', '*'))) {
        ensure_order(p, a->star_star == NULL, line);
        a->star_star = parse_expression(p);
    } else if (p->tok->kind == LEX_NAME && tok_is_op(p->tok + 1, '=')) {
        ensure_order(p, a->star_star == NULL, line);
        struct keyword k = {.name = parse_str(p, p->tok->data, p->tok->len)};
        p->tok += 2;
        k.value = parse_expression(p);
        keywords_push(p, named, k);
    } else {
        ensure_order(p, a->star == NULL && a->star_star == NULL && named->count == 0, line);
        items_push(p, items, parse_expression(p));
    }
}

static const struct call_args *parse_args(struct parse *p)
{
    struct call_args *a = parse_alloc(p, sizeof(*a));
    struct items items = {0};
    struct keywords named = {0};
    parse_expect_op(p, '(');
    while (!tok_is_op(p->tok, ')')) {
        parse_one_arg(p, a, &items, &named);
        if (!tok_is_op(p->tok, ')'))
            parse_expect_op(p, ',');
    }
    p->tok++;
    a->items = items.at;
    a->count = items.count;
    a->keywords = named.at;
    a->keywords_count = named.count;
    return a;
}

static void hang_args(struct parse *p, struct expr *x)
{
    const struct call_args *a = x->args;
    for (uint32_t i = 0; i < a->count; i++)
        hang(p, x, a->items[i]);
    for (uint32_t i = 0; i < a->keywords_count; i++)
        hang(p, x, a->keywords[i].value);
    hang(p, x, a->star);
    hang(p, x, a->star_star);
}

static struct expr *parse_call_of(struct parse *p, struct expr *callee)
{
    struct expr *x = expr_unary(p, EXPR_CALL, callee, p->tok->line);
    x->args = parse_args(p);
    hang_args(p, x);
    return x;
}

/* ---- filters and tests ----------------------------------------------------------------------- */

static const struct call_args no_args;

struct expr *parse_filters(struct parse *p, struct expr *input, bool at_name)
{
    struct expr *x = input;
    while (at_name || tok_is_op(p->tok, '|')) {
        if (!at_name)
            p->tok++;
        at_name = false;
        const struct lex_token *name = parse_expect_name(p);
        struct expr *f = expr_unary(p, EXPR_FILTER, x, name->line);
        f->filter = filter_find(name->data, name->len);
        if (f->filter == NULL || tok_is_op(p->tok, '.'))
            parse_fail(p, ERR_UNSUPPORTED, name->line, "the filter '%.*s' is not supported",
                       (int)BASE_MIN(name->len, (size_t)60), name->data);
        f->args = tok_is_op(p->tok, '(') ? parse_args(p) : &no_args;
        hang_args(p, f);
        x = f;
    }
    return x;
}

static struct expr *parse_primary(struct parse *p, bool with_namespace);
static struct expr *parse_postfix(struct parse *p, struct expr *x);

/* `is divisibleby 3`: a test takes one argument without brackets. */
static bool bare_argument_follows(struct parse *p)
{
    const struct lex_token *t = p->tok;
    if (t->kind == LEX_NAME)
        return !tok_is_name(t, "else") && !tok_is_name(t, "or") && !tok_is_name(t, "and");
    return t->kind == LEX_STRING || t->kind == LEX_INT || t->kind == LEX_FLOAT ||
           tok_is_op(t, '[') || tok_is_op(t, '{');
}

static struct expr *parse_test(struct parse *p, struct expr *subject)
{
    int32_t line = p->tok->line;
    p->tok++; /* is */
    bool negated = parse_skip_name(p, "not");
    const struct lex_token *name = parse_expect_name(p);
    struct expr *x = expr_unary(p, EXPR_TEST, subject, line);
    x->test = test_find(name->data, name->len);
    if (x->test == NULL)
        parse_fail(p, ERR_UNSUPPORTED, name->line, "the test '%.*s' is not supported",
                   (int)BASE_MIN(name->len, (size_t)60), name->data);
    x->args = &no_args;
    if (tok_is_op(p->tok, '(')) {
        x->args = parse_args(p);
    } else if (bare_argument_follows(p)) {
        if (tok_is_name(p->tok, "is"))
            parse_fail(p, ERR_INVALID, p->tok->line, "tests can not be chained with 'is'");
        struct items one = {0};
        items_push(p, &one, parse_postfix(p, parse_primary(p, false)));
        struct call_args *args = parse_alloc(p, sizeof(*args));
        args->items = one.at;
        args->count = 1;
        x->args = args;
    }
    hang_args(p, x);
    return negated ? expr_unary(p, EXPR_NOT, x, line) : x;
}

static struct expr *parse_filter_expr(struct parse *p, struct expr *x)
{
    for (;;) {
        if (tok_is_op(p->tok, '|'))
            x = parse_filters(p, x, false);
        else if (tok_is_name(p->tok, "is"))
            x = parse_test(p, x);
        else if (tok_is_op(p->tok, '('))
            x = parse_call_of(p, x);
        else
            return x;
    }
}

/* ---- postfix --------------------------------------------------------------------------------- */

static struct expr *slice_bound(struct parse *p)
{
    bool absent = tok_is_op(p->tok, ':') || tok_is_op(p->tok, ']') || tok_is_op(p->tok, ',');
    return absent ? NULL : parse_expression(p);
}

/* What stands in brackets: an expression, or the bounds of a slice. */
static struct expr *parse_subscript(struct parse *p, struct expr *obj)
{
    char buf[64];
    int32_t line = p->tok[-1].line;
    struct expr *bounds[3] = {slice_bound(p), NULL, NULL};
    if (bounds[0] == NULL && tok_is_op(p->tok, ']')) /* obj[]: the empty tuple is the key */
        return expr_binary(p, EXPR_ITEM, 0, obj, expr_new(p, EXPR_TUPLE, line));
    if (!tok_is_op(p->tok, ':')) {
        if (bounds[0] == NULL)
            parse_fail(p, ERR_INVALID, line, "expected an expression in [], got %s",
                       tok_describe(p->tok, buf));
        if (!tok_is_op(p->tok, ','))
            return expr_binary(p, EXPR_ITEM, 0, obj, bounds[0]);
        struct items keys = {0}; /* obj[a, b]: a tuple is the key */
        items_push(p, &keys, bounds[0]);
        while (parse_skip_op(p, ','))
            items_push(p, &keys, parse_expression(p));
        struct expr *tuple = expr_new(p, EXPR_TUPLE, line);
        hang_items(p, tuple, &keys);
        return expr_binary(p, EXPR_ITEM, 0, obj, tuple);
    }
    p->tok++;
    bounds[1] = slice_bound(p);
    if (parse_skip_op(p, ':'))
        bounds[2] = slice_bound(p);
    struct expr *x = expr_unary(p, EXPR_SLICE, obj, line);
    x->items = parse_alloc(p, 3 * sizeof(struct expr *));
    for (uint32_t i = 0; i < 3; i++) {
        x->items[i] = bounds[i];
        hang(p, x, bounds[i]);
    }
    x->count = 3;
    return x;
}

static struct expr *parse_attr(struct parse *p, struct expr *obj)
{
    char buf[64];
    const struct lex_token *tok = p->tok++;
    if (tok->kind == LEX_INT)
        return expr_binary(p, EXPR_ITEM, 0, obj, expr_const(p, value_int(tok->i), tok->line));
    if (tok->kind != LEX_NAME)
        parse_fail(p, ERR_INVALID, tok->line, "expected a name or a number after '.', got %s",
                   tok_describe(tok, buf));
    struct expr *x = expr_unary(p, EXPR_ATTR, obj, tok->line);
    x->attr = parse_str(p, tok->data, tok->len);
    return x;
}

static struct expr *parse_postfix(struct parse *p, struct expr *x)
{
    for (;;) {
        if (parse_skip_op(p, '.')) {
            x = parse_attr(p, x);
        } else if (parse_skip_op(p, '[')) {
            x = parse_subscript(p, x);
            parse_expect_op(p, ']');
        } else if (tok_is_op(p->tok, '(')) {
            x = parse_call_of(p, x);
        } else {
            return x;
        }
    }
}

/* ---- primaries ------------------------------------------------------------------------------- */

static bool constant_of(const struct lex_token *t, struct value *ret)
{
    if (tok_is_name(t, "true") || tok_is_name(t, "True"))
        *ret = value_bool(true);
    else if (tok_is_name(t, "false") || tok_is_name(t, "False"))
        *ret = value_bool(false);
    else if (tok_is_name(t, "none") || tok_is_name(t, "None"))
        *ret = value_none();
    else
        return false;
    return true;
}

static struct expr *parse_name_expr(struct parse *p, bool with_namespace)
{
    const struct lex_token *tok = p->tok++;
    struct value v;
    if (constant_of(tok, &v))
        return expr_const(p, v, tok->line);
    if (tok_is_name(tok, "self") || tok_is_name(tok, "lipsum"))
        parse_fail(p, ERR_UNSUPPORTED, tok->line, "the name '%.*s' is not supported", (int)tok->len,
                   tok->data);
    struct expr *x = expr_new(p, EXPR_NAME, tok->line);
    x->name = parse_name(p, tok);
    p->used_caller += tok_is_name(tok, "caller");
    p->used_varargs += tok_is_name(tok, "varargs");
    p->used_kwargs += tok_is_name(tok, "kwargs");
    if (with_namespace && parse_skip_op(p, '.')) {
        const struct lex_token *attr = parse_expect_name(p);
        x->kind = EXPR_NSREF;
        x->attr = parse_str(p, attr->data, attr->len);
    }
    return x;
}

/* Strings next to each other are one. */
static struct expr *parse_string(struct parse *p)
{
    int32_t line = p->tok->line;
    if (p->tok[1].kind != LEX_STRING) {
        struct value one = value_str(parse_str(p, p->tok->data, p->tok->len));
        p->tok++;
        return expr_const(p, one, line);
    }
    size_t len = 0, n = 0;
    for (const struct lex_token *t = p->tok; t->kind == LEX_STRING; t++)
        len += t->len;
    char *text = parse_alloc(p, len + 1);
    for (; p->tok->kind == LEX_STRING; p->tok++) {
        memcpy(text + n, p->tok->data, p->tok->len);
        n += p->tok->len;
    }
    return expr_const(p, value_str(parse_str(p, text, len)), line);
}

static struct expr *parse_list(struct parse *p)
{
    struct expr *x = expr_new(p, EXPR_LIST, p->tok[-1].line);
    struct items items = {0};
    while (!tok_is_op(p->tok, ']')) {
        items_push(p, &items, parse_expression(p));
        if (!tok_is_op(p->tok, ']'))
            parse_expect_op(p, ',');
    }
    p->tok++;
    hang_items(p, x, &items);
    return x;
}

static struct expr *parse_dict(struct parse *p)
{
    struct expr *x = expr_new(p, EXPR_DICT, p->tok[-1].line);
    struct items items = {0};
    while (!tok_is_op(p->tok, '}')) {
        items_push(p, &items, parse_expression(p));
        parse_expect_op(p, ':');
        items_push(p, &items, parse_expression(p));
        if (!tok_is_op(p->tok, '}'))
            parse_expect_op(p, ',');
    }
    p->tok++;
    hang_items(p, x, &items);
    return x;
}

/* ( ... ): an expression, or a tuple that may be empty. */
static struct expr *parse_parens(struct parse *p)
{
    int32_t line = p->tok[-1].line;
    struct expr *x;
    if (tok_is_op(p->tok, ')'))
        x = expr_new(p, EXPR_TUPLE, line);
    else
        x = parse_tuple(p, true, NULL);
    parse_expect_op(p, ')');
    return x;
}

static struct expr *parse_primary(struct parse *p, bool with_namespace)
{
    char buf[64];
    const struct lex_token *tok = p->tok;
    switch (tok->kind) {
    case LEX_NAME:
        return parse_name_expr(p, with_namespace);
    case LEX_STRING:
        return parse_string(p);
    case LEX_INT:
        p->tok++;
        return expr_const(p, value_int(tok->i), tok->line);
    case LEX_FLOAT:
        p->tok++;
        return expr_const(p, value_float(tok->f), tok->line);
    default:
        break;
    }
    if (parse_skip_op(p, '('))
        return parse_parens(p);
    if (parse_skip_op(p, '['))
        return parse_list(p);
    if (parse_skip_op(p, '{'))
        return parse_dict(p);
    parse_fail(p, ERR_INVALID, tok->line, "expected an expression, got %s", tok_describe(tok, buf));
}

/* ---- operators ------------------------------------------------------------------------------- */

static struct expr *parse_unary(struct parse *p, bool with_filter)
{
    int32_t line = p->tok->line;
    struct expr *x;
    parse_enter(p);
    if (parse_skip_op(p, '-'))
        x = expr_unary(p, EXPR_NEG, parse_unary(p, false), line);
    else if (parse_skip_op(p, '+'))
        x = expr_unary(p, EXPR_POS, parse_unary(p, false), line);
    else
        x = parse_primary(p, false);
    x = parse_postfix(p, x);
    if (with_filter)
        x = parse_filter_expr(p, x);
    p->depth--;
    return x;
}

static struct expr *parse_pow(struct parse *p)
{
    struct expr *x = parse_unary(p, true);
    while (parse_skip_op(p, OP2('*', '*')))
        x = expr_binary(p, EXPR_BINARY, OP2('*', '*'), x, parse_unary(p, true));
    return x;
}

static struct expr *parse_product(struct parse *p)
{
    struct expr *x = parse_pow(p);
    while (tok_is_op(p->tok, '*') || tok_is_op(p->tok, '/') || tok_is_op(p->tok, '%') ||
           tok_is_op(p->tok, OP2('/', '/'))) {
        int op = p->tok->op;
        p->tok++;
        x = expr_binary(p, EXPR_BINARY, op, x, parse_pow(p));
    }
    return x;
}

static struct expr *parse_concat(struct parse *p)
{
    struct expr *first = parse_product(p);
    if (!tok_is_op(p->tok, '~'))
        return first;
    struct expr *x = expr_new(p, EXPR_CONCAT, first->line);
    struct items items = {0};
    items_push(p, &items, first);
    while (parse_skip_op(p, '~'))
        items_push(p, &items, parse_product(p));
    hang_items(p, x, &items);
    return x;
}

static struct expr *parse_sum(struct parse *p)
{
    struct expr *x = parse_concat(p);
    while (tok_is_op(p->tok, '+') || tok_is_op(p->tok, '-')) {
        int op = p->tok->op;
        p->tok++;
        x = expr_binary(p, EXPR_BINARY, op, x, parse_concat(p));
    }
    return x;
}

/* Consumes a comparison operator; 0 = there is none. */
static int compare_op(struct parse *p)
{
    static const int ops[] = {OP2('=', '='), OP2('!', '='), OP2('<', '='), OP2('>', '='), '<', '>'};
    for (size_t i = 0; i < BASE_COUNT(ops); i++) {
        if (parse_skip_op(p, ops[i]))
            return ops[i];
    }
    if (parse_skip_name(p, "in"))
        return COMPARE_IN;
    if (tok_is_name(p->tok, "not") && tok_is_name(p->tok + 1, "in")) {
        p->tok += 2;
        return COMPARE_NOT_IN;
    }
    return 0;
}

static struct expr *parse_compare(struct parse *p)
{
    enum { CHAIN_MAX = 16 };
    int ops[CHAIN_MAX];
    struct items items = {0};
    struct expr *first = parse_sum(p);
    for (int op = compare_op(p); op != 0; op = compare_op(p)) {
        if (items.count == CHAIN_MAX)
            parse_fail(p, ERR_UNSUPPORTED, first->line, "more than %d chained comparisons",
                       CHAIN_MAX);
        ops[items.count] = op;
        items_push(p, &items, parse_sum(p));
    }
    if (items.count == 0)
        return first;
    struct expr *x = expr_unary(p, EXPR_COMPARE, first, first->line);
    hang_items(p, x, &items);
    x->ops = parse_alloc(p, items.count * sizeof(int));
    memcpy(x->ops, ops, items.count * sizeof(int));
    return x;
}

static struct expr *parse_not(struct parse *p)
{
    if (!tok_is_name(p->tok, "not"))
        return parse_compare(p);
    int32_t line = p->tok->line;
    p->tok++;
    parse_enter(p);
    struct expr *x = expr_unary(p, EXPR_NOT, parse_not(p), line);
    p->depth--;
    return x;
}

static struct expr *parse_and(struct parse *p)
{
    struct expr *x = parse_not(p);
    while (parse_skip_name(p, "and"))
        x = expr_binary(p, EXPR_AND, 0, x, parse_not(p));
    return x;
}

static struct expr *parse_or(struct parse *p)
{
    struct expr *x = parse_and(p);
    while (parse_skip_name(p, "or"))
        x = expr_binary(p, EXPR_OR, 0, x, parse_and(p));
    return x;
}

struct expr *parse_expression(struct parse *p)
{
    parse_enter(p);
    struct expr *x = parse_or(p);
    while (parse_skip_name(p, "if")) {
        struct expr *cond = expr_binary(p, EXPR_COND, 0, x, parse_or(p));
        if (parse_skip_name(p, "else")) {
            cond->c = parse_expression(p);
            hang(p, cond, cond->c);
        }
        x = cond;
    }
    p->depth--;
    return x;
}

/* ---- tuples and targets ---------------------------------------------------------------------- */

static bool tuple_ends(const struct lex_token *t, const char *stop)
{
    return t->kind == LEX_PRINT_CLOSE || t->kind == LEX_BLOCK_CLOSE || tok_is_op(t, ')') ||
           (stop != NULL && tok_is_name(t, stop));
}

enum tuple_part { PART_EXPRESSION, PART_NO_COND, PART_TARGET, PART_TARGET_NS };

static struct expr *parse_part(struct parse *p, enum tuple_part part)
{
    switch (part) {
    case PART_EXPRESSION:
        return parse_expression(p);
    case PART_NO_COND:
        return parse_or(p);
    case PART_TARGET:
    case PART_TARGET_NS:
        break;
    }
    return parse_primary(p, part == PART_TARGET_NS);
}

static struct expr *parse_parts(struct parse *p, enum tuple_part part, const char *stop)
{
    char buf[64];
    int32_t line = p->tok->line;
    struct items items = {0};
    bool is_tuple = false;
    while (!tuple_ends(p->tok, stop)) {
        items_push(p, &items, parse_part(p, part));
        if (!parse_skip_op(p, ','))
            break;
        is_tuple = true;
    }
    if (items.count == 0)
        parse_fail(p, ERR_INVALID, line, "expected an expression, got %s",
                   tok_describe(p->tok, buf));
    if (!is_tuple)
        return items.at[0];
    struct expr *x = expr_new(p, EXPR_TUPLE, line);
    hang_items(p, x, &items);
    return x;
}

struct expr *parse_tuple(struct parse *p, bool with_cond, const char *stop)
{
    return parse_parts(p, with_cond ? PART_EXPRESSION : PART_NO_COND, stop);
}

static void check_target(struct parse *p, const struct expr *x)
{
    if (x->kind == EXPR_NAME || x->kind == EXPR_NSREF)
        return;
    if (x->kind != EXPR_TUPLE)
        parse_fail(p, ERR_INVALID, x->line, "only names can be assigned to");
    for (uint32_t i = 0; i < x->count; i++)
        check_target(p, x->items[i]);
}

struct expr *parse_target(struct parse *p, bool with_namespace, const char *stop)
{
    struct expr *x = parse_parts(p, with_namespace ? PART_TARGET_NS : PART_TARGET, stop);
    check_target(p, x);
    return x;
}
