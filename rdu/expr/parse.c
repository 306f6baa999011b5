/* Text to typed operations in one walk: every name is known before it is used, so types are checked
 * where they are read and an error can point at its column. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/expr/expr.h"

enum token {
    T_END,
    T_NUMBER,
    T_NAME,
    T_LPAREN,
    T_RPAREN,
    T_COMMA,
    T_SEMI,
    T_ASSIGN,
    T_PLUS,
    T_MINUS,
    T_STAR,
    T_SLASH,
    T_PERCENT,
    T_LT,
    T_LE,
    T_GT,
    T_GE,
    T_EQ,
    T_NE,
    T_BAD,
};

struct let {
    const char *name;
    size_t len;
    uint32_t value;
};

struct parse {
    struct rdu_expr *x;
    const char *text, *at, *end;
    enum token token;
    const char *from; /* of the current token */
    size_t len;
    struct let let[EXPR_LETS_MAX];
    uint32_t lets, depth;
    bool failed;
    struct err *e;
};

static uint32_t parse_expr(struct parse *p);

/* ---- errors ---------------------------------------------------------------------------------- */

/* The first error stays. Returns a value that any later step may look at. */
static uint32_t fail_at(struct parse *p, const char *where, const char *fmt, ...) BASE_PRINTF(3, 4);
static uint32_t fail_at(struct parse *p, const char *where, const char *fmt, ...)
{
    if (p->failed)
        return 0;
    uint32_t line = 1, column = 1;
    for (const char *c = p->text; c < where; c++) {
        column = *c == '\n' ? 1 : column + (((unsigned char)*c & 0xc0u) != 0x80u);
        line += *c == '\n';
    }
    char msg[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(msg, sizeof(msg), fmt, args);
    va_end(args);
    err_set(p->e, ERR_INVALID, "line %u, column %u: %s", line, column, msg);
    p->failed = true;
    p->token = T_END;
    return 0;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static void skip_blank(struct parse *p)
{
    while (p->at < p->end) {
        if (*p->at == '#') {
            while (p->at < p->end && *p->at != '\n')
                p->at++;
        } else if (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r') {
            p->at++;
        } else {
            return;
        }
    }
}

static const char *number_end(const struct parse *p)
{
    const char *c = p->at;
    while (c < p->end && is_digit(*c))
        c++;
    if (c < p->end && *c == '.')
        c++;
    while (c < p->end && is_digit(*c))
        c++;
    if (c < p->end && (*c == 'e' || *c == 'E')) {
        const char *digits = c + 1;
        if (digits < p->end && (*digits == '+' || *digits == '-'))
            digits++;
        if (digits < p->end && is_digit(*digits))
            c = digits;
        while (c < p->end && is_digit(*c))
            c++;
    }
    return c;
}

static enum token symbol(struct parse *p)
{
    static const struct {
        const char *text;
        enum token token;
    } symbols[] = {{"<=", T_LE},    {">=", T_GE},   {"==", T_EQ},    {"!=", T_NE},
                   {"<", T_LT},     {">", T_GT},    {"=", T_ASSIGN}, {"(", T_LPAREN},
                   {")", T_RPAREN}, {",", T_COMMA}, {";", T_SEMI},   {"+", T_PLUS},
                   {"-", T_MINUS},  {"*", T_STAR},  {"/", T_SLASH},  {"%", T_PERCENT}};
    for (size_t i = 0; i < BASE_COUNT(symbols); i++) {
        size_t len = strlen(symbols[i].text);
        if ((size_t)(p->end - p->at) >= len && memcmp(p->at, symbols[i].text, len) == 0) {
            p->at += len;
            return symbols[i].token;
        }
    }
    return T_BAD;
}

static void next(struct parse *p)
{
    if (p->failed)
        return;
    skip_blank(p);
    p->from = p->at;
    if (p->at == p->end) {
        p->token = T_END;
    } else if (is_digit(*p->at) || (*p->at == '.' && p->at + 1 < p->end && is_digit(p->at[1]))) {
        p->token = T_NUMBER;
        p->at = number_end(p);
        if (p->at < p->end && (is_letter(*p->at) || *p->at == '.'))
            fail_at(p, p->from, "a number ends in `%c`", *p->at);
    } else if (is_letter(*p->at)) {
        p->token = T_NAME;
        while (p->at < p->end && (is_letter(*p->at) || is_digit(*p->at)))
            p->at++;
    } else {
        p->token = symbol(p);
        if (p->token == T_BAD)
            fail_at(p, p->from, "a character that means nothing here (byte 0x%02x)",
                    (unsigned char)*p->from);
    }
    p->len = (size_t)(p->at - p->from);
}

static bool is_word(const struct parse *p, const char *word)
{
    return p->token == T_NAME && strlen(word) == p->len && memcmp(p->from, word, p->len) == 0;
}

static bool accept(struct parse *p, enum token t)
{
    if (p->failed || p->token != t)
        return false;
    next(p);
    return true;
}

static bool accept_word(struct parse *p, const char *word)
{
    if (p->failed || !is_word(p, word))
        return false;
    next(p);
    return true;
}

static void expect(struct parse *p, enum token t, const char *what)
{
    if (p->failed || accept(p, t))
        return;
    if (p->token == T_END)
        fail_at(p, p->from, "the text ends where %s is due", what);
    else
        fail_at(p, p->from, "`%.*s` where %s is due", (int)BASE_MIN(p->len, 40), p->from, what);
}

/* ---- values ---------------------------------------------------------------------------------- */

static const char *type_name(uint32_t type)
{
    return type == IR_TYPE_F32 ? "f32" : (type == IR_TYPE_I32 ? "i32" : "bool");
}

static uint32_t type_of(const struct parse *p, uint32_t v)
{
    return p->failed ? IR_TYPE_F32 : p->x->ops[v].type;
}

static uint32_t emit(struct parse *p, const char *where, uint32_t code, uint32_t type,
                     const uint32_t *arg, uint32_t args)
{
    if (p->failed)
        return 0;
    struct expr_op op = {.code = code, .type = type, .arg = {IR_NONE, IR_NONE, IR_NONE}};
    for (uint32_t i = 0; i < args; i++)
        op.arg[i] = arg[i];
    uint32_t id = expr_emit(p->x, &op);
    return id != IR_NONE
               ? id
               : fail_at(p, where, "more than %d operations: split the expression", EXPR_OPS_MAX);
}

static uint32_t emit1(struct parse *p, const char *where, uint32_t code, uint32_t a)
{
    return emit(p, where, code, type_of(p, a), &a, 1);
}

static uint32_t emit2(struct parse *p, const char *where, uint32_t code, uint32_t a, uint32_t b)
{
    const uint32_t arg[2] = {a, b};
    bool compares = code == IR_LT || code == IR_LE || code == IR_EQ;
    return emit(p, where, code, compares ? IR_TYPE_BOOL : type_of(p, a), arg, 2);
}

static uint32_t literal(struct parse *p, float v)
{
    return p->failed ? 0 : expr_f32(p->x, v);
}

static uint32_t to_f32(struct parse *p, const char *where, uint32_t v)
{
    if (type_of(p, v) == IR_TYPE_F32)
        return v;
    if (type_of(p, v) == IR_TYPE_BOOL)
        return fail_at(p, where, "a bool is no number: use where(condition, 1, 0)");
    return emit(p, where, IR_TO_F32, IR_TYPE_F32, &v, 1);
}

/* Both as one type of number: i32 if both are, else f32. */
static void unify(struct parse *p, const char *where, uint32_t *a, uint32_t *b)
{
    if (type_of(p, *a) == IR_TYPE_I32 && type_of(p, *b) == IR_TYPE_I32)
        return;
    *a = to_f32(p, where, *a);
    *b = to_f32(p, where, *b);
}

static uint32_t want_bool(struct parse *p, const char *where, uint32_t v)
{
    if (type_of(p, v) != IR_TYPE_BOOL)
        return fail_at(p, where, "this is %s where a condition (bool) is due",
                       type_name(type_of(p, v)));
    return v;
}

static uint32_t select_of(struct parse *p, const char *where, uint32_t cond, uint32_t yes,
                          uint32_t no)
{
    if (type_of(p, yes) != IR_TYPE_BOOL || type_of(p, no) != IR_TYPE_BOOL)
        unify(p, where, &yes, &no);
    const uint32_t arg[3] = {cond, yes, no};
    return emit(p, where, IR_SELECT, type_of(p, yes), arg, 3);
}

/* ---- functions ------------------------------------------------------------------------------- */

static uint32_t reduce(struct parse *p, const char *where, uint32_t code, uint32_t v)
{
    return emit(p, where, code, IR_TYPE_F32, &v, 1);
}

static uint32_t min_all(struct parse *p, const char *where, uint32_t v)
{
    return emit1(p, where, IR_NEG, reduce(p, where, EXPR_MAX, emit1(p, where, IR_NEG, v)));
}

/* 1 or 0 of a condition. */
static uint32_t unit(struct parse *p, const char *where, uint32_t cond)
{
    return select_of(p, where, want_bool(p, where, cond), literal(p, 1.0f), literal(p, 0.0f));
}

static uint32_t call_reduce(struct parse *p, const char *where, const char *name, uint32_t v)
{
    if (strcmp(name, "count") == 0)
        return reduce(p, where, EXPR_SUM, unit(p, where, v));
    if (strcmp(name, "any") == 0)
        return emit2(p, where, IR_LT, literal(p, 0.0f),
                     reduce(p, where, EXPR_MAX, unit(p, where, v)));
    if (strcmp(name, "all") == 0)
        return emit2(p, where, IR_LT, literal(p, 0.0f), min_all(p, where, unit(p, where, v)));
    v = to_f32(p, where, v);
    if (strcmp(name, "max") == 0)
        return reduce(p, where, EXPR_MAX, v);
    if (strcmp(name, "min") == 0)
        return min_all(p, where, v);
    uint32_t sum = reduce(p, where, EXPR_SUM, v);
    if (strcmp(name, "sum") == 0)
        return sum;
    return emit2(p, where, IR_DIV, sum, emit(p, where, EXPR_SIZE, IR_TYPE_F32, NULL, 0));
}

static uint32_t call_one(struct parse *p, const char *where, const char *name, uint32_t v)
{
    static const struct {
        const char *name;
        uint32_t code;
    } plain[] = {
        {"sqrt", IR_SQRT}, {"exp", IR_EXP}, {"log", IR_LOG}, {"tanh", IR_TANH}, {"rint", IR_RINT}};
    for (size_t i = 0; i < BASE_COUNT(plain); i++) {
        if (strcmp(name, plain[i].name) == 0)
            return emit1(p, where, plain[i].code, to_f32(p, where, v));
    }
    if (strcmp(name, "f32") == 0)
        return to_f32(p, where, v);
    if (strcmp(name, "abs") == 0 && type_of(p, v) == IR_TYPE_I32)
        return emit1(p, where, IR_ABS, v);
    v = strcmp(name, "i32") == 0 && type_of(p, v) == IR_TYPE_I32 ? v : to_f32(p, where, v);
    if (strcmp(name, "abs") == 0)
        return emit1(p, where, IR_ABS, v);
    if (strcmp(name, "i32") == 0)
        return type_of(p, v) == IR_TYPE_I32 ? v : emit(p, where, IR_TO_I32, IR_TYPE_I32, &v, 1);
    /* floor: the nearest integer, or the one below it */
    uint32_t near = emit1(p, where, IR_RINT, v);
    uint32_t below = emit2(p, where, IR_SUB, near, literal(p, 1.0f));
    return select_of(p, where, emit2(p, where, IR_LT, v, near), below, near);
}

static uint32_t call_many(struct parse *p, const char *where, const char *name, uint32_t *v)
{
    if (strcmp(name, "where") == 0)
        return select_of(p, where, want_bool(p, where, v[0]), v[1], v[2]);
    unify(p, where, &v[0], &v[1]);
    if (strcmp(name, "max") == 0)
        return emit2(p, where, IR_MAX, v[0], v[1]);
    if (strcmp(name, "min") == 0)
        return emit2(p, where, IR_MIN, v[0], v[1]);
    uint32_t low = emit2(p, where, IR_MAX, v[0], v[1]); /* clamp */
    unify(p, where, &low, &v[2]);
    return emit2(p, where, IR_MIN, low, v[2]);
}

struct function {
    const char *name;
    uint32_t args[2]; /* how many it takes; the second 0 = only so many */
};
static const struct function functions[] = {
    {"max", {1, 2}},   {"min", {1, 2}},   {"sum", {1, 0}},   {"mean", {1, 0}},  {"any", {1, 0}},
    {"all", {1, 0}},   {"count", {1, 0}}, {"clamp", {3, 0}}, {"where", {3, 0}}, {"abs", {1, 0}},
    {"sqrt", {1, 0}},  {"exp", {1, 0}},   {"log", {1, 0}},   {"tanh", {1, 0}},  {"rint", {1, 0}},
    {"floor", {1, 0}}, {"f32", {1, 0}},   {"i32", {1, 0}},
};

static bool reduces(const char *name)
{
    static const char *const names[] = {"max", "min", "sum", "mean", "any", "all", "count"};
    for (size_t i = 0; i < BASE_COUNT(names); i++) {
        if (strcmp(name, names[i]) == 0)
            return true;
    }
    return false;
}

static uint32_t parse_call(struct parse *p, const struct function *f, const char *where)
{
    uint32_t v[3] = {0, 0, 0}, count = 0;
    expect(p, T_LPAREN, "(");
    while (!p->failed && count < BASE_COUNT(v)) {
        v[count++] = parse_expr(p);
        if (!accept(p, T_COMMA))
            break;
    }
    if (count != f->args[0] && count != f->args[1] && !p->failed)
        return fail_at(p, where, "%s takes %u argument%s%s, not %u", f->name, f->args[0],
                       f->args[0] == 1 ? "" : "s", f->args[1] ? " or 2" : "", count);
    expect(p, T_RPAREN, ")");
    if (p->failed)
        return 0;
    if (count == 1)
        return reduces(f->name) ? call_reduce(p, where, f->name, v[0])
                                : call_one(p, where, f->name, v[0]);
    return call_many(p, where, f->name, v);
}

/* ---- names and numbers ----------------------------------------------------------------------- */

static uint32_t parse_number(struct parse *p)
{
    char digits[64];
    const char *where = p->from;
    size_t len = p->len;
    if (len >= sizeof(digits))
        return fail_at(p, where, "a number of %zu characters", len);
    memcpy(digits, p->from, len);
    digits[len] = 0;
    next(p);
    if (strpbrk(digits, ".eE") == NULL) {
        long long v = strtoll(digits, NULL, 10);
        if (v > INT32_MAX)
            return fail_at(p, where, "%s does not fit i32: write %s.0 for f32", digits, digits);
        return p->failed ? 0 : expr_const(p->x, IR_TYPE_I32, (int32_t)v);
    }
    float v = strtof(digits, NULL);
    if (!isfinite(v))
        return fail_at(p, where, "%s is beyond f32", digits);
    return literal(p, v);
}

static void list_names(const struct parse *p, struct buf *out)
{
    for (uint32_t i = 0; i < p->x->spec.fields_count; i++)
        buf_printf(out, "%s%s", i ? ", " : "", p->x->spec.fields[i].name);
}

static uint32_t unknown_name(struct parse *p, const char *where, size_t len)
{
    struct buf names = {0};
    list_names(p, &names);
    fail_at(p, where, "no field, `let` or function is called `%.*s`; the fields are %.250s",
            (int)BASE_MIN(len, 40), where, names.len ? names.data : "none");
    buf_done(&names);
    return 0;
}

static uint32_t field(struct parse *p, uint32_t i)
{
    const struct rdu_expr_field *f = &p->x->spec.fields[i];
    static const uint32_t type[] = {IR_TYPE_F32, IR_TYPE_I32, IR_TYPE_BOOL};
    struct expr_op op = {.code = EXPR_FIELD,
                         .type = type[f->type],
                         .imm = (int32_t)i,
                         .column = f->column,
                         .arg = {IR_NONE, IR_NONE, IR_NONE}};
    p->x->uses[i] = true;
    uint32_t id = expr_emit(p->x, &op);
    return id != IR_NONE ? id : fail_at(p, p->from, "more than %d operations", EXPR_OPS_MAX);
}

static uint32_t parse_name(struct parse *p)
{
    const char *where = p->from;
    size_t len = p->len;
    if (accept_word(p, "true"))
        return p->failed ? 0 : expr_const(p->x, IR_TYPE_BOOL, 1);
    if (accept_word(p, "false"))
        return p->failed ? 0 : expr_const(p->x, IR_TYPE_BOOL, 0);
    if (accept_word(p, "inf"))
        return literal(p, INFINITY);
    next(p);
    for (uint32_t i = p->lets; i-- > 0;) {
        if (p->let[i].len == len && memcmp(p->let[i].name, where, len) == 0)
            return p->let[i].value;
    }
    for (size_t i = 0; i < BASE_COUNT(functions); i++) {
        if (p->token == T_LPAREN && strlen(functions[i].name) == len &&
            memcmp(functions[i].name, where, len) == 0)
            return parse_call(p, &functions[i], where);
    }
    for (uint32_t i = 0; i < p->x->spec.fields_count; i++) {
        const char *name = p->x->spec.fields[i].name;
        if (strlen(name) == len && memcmp(name, where, len) == 0)
            return field(p, i);
    }
    return p->failed ? 0 : unknown_name(p, where, len);
}

/* ---- operators ------------------------------------------------------------------------------- */

static uint32_t parse_primary(struct parse *p)
{
    if (p->failed)
        return 0;
    if (p->token == T_NUMBER)
        return parse_number(p);
    if (p->token == T_NAME && !is_word(p, "then") && !is_word(p, "else") && !is_word(p, "and") &&
        !is_word(p, "or") && !is_word(p, "let"))
        return parse_name(p);
    if (accept(p, T_LPAREN)) {
        uint32_t v = parse_expr(p);
        expect(p, T_RPAREN, ")");
        return v;
    }
    expect(p, T_NUMBER, "a value");
    return 0;
}

static bool enter(struct parse *p)
{
    if (p->depth >= EXPR_DEPTH_MAX)
        fail_at(p, p->from, "nested more than %d deep", EXPR_DEPTH_MAX);
    p->depth++;
    return !p->failed;
}

static uint32_t parse_unary(struct parse *p)
{
    const char *where = p->from;
    if (!accept(p, T_MINUS))
        return parse_primary(p);
    uint32_t v = enter(p) ? parse_unary(p) : 0;
    p->depth--;
    if (type_of(p, v) == IR_TYPE_BOOL)
        return fail_at(p, where, "a bool has no negative: use not");
    return emit1(p, where, IR_NEG, v);
}

static uint32_t parse_product(struct parse *p)
{
    uint32_t v = parse_unary(p);
    for (;;) {
        const char *where = p->from;
        enum token t = p->token;
        if (p->failed || (t != T_STAR && t != T_SLASH && t != T_PERCENT))
            return v;
        next(p);
        uint32_t w = parse_unary(p);
        unify(p, where, &v, &w);
        if (t == T_SLASH) {
            v = to_f32(p, where, v);
            w = to_f32(p, where, w);
        }
        if (t == T_PERCENT && type_of(p, v) != IR_TYPE_I32)
            return fail_at(p, where, "%% takes i32 on both sides");
        v = emit2(p, where, t == T_STAR ? IR_MUL : (t == T_SLASH ? IR_DIV : IR_MOD), v, w);
    }
}

static uint32_t parse_sum(struct parse *p)
{
    uint32_t v = parse_product(p);
    for (;;) {
        const char *where = p->from;
        enum token t = p->token;
        if (p->failed || (t != T_PLUS && t != T_MINUS))
            return v;
        next(p);
        uint32_t w = parse_product(p);
        unify(p, where, &v, &w);
        v = emit2(p, where, t == T_PLUS ? IR_ADD : IR_SUB, v, w);
    }
}

static uint32_t parse_compare(struct parse *p)
{
    uint32_t v = parse_sum(p);
    const char *where = p->from;
    enum token t = p->token;
    if (p->failed || t < T_LT || t > T_NE)
        return v;
    next(p);
    uint32_t w = parse_sum(p);
    bool equality = t == T_EQ || t == T_NE;
    if (!equality || type_of(p, v) != IR_TYPE_BOOL || type_of(p, w) != IR_TYPE_BOOL)
        unify(p, where, &v, &w);
    if (equality) {
        uint32_t equal = emit2(p, where, IR_EQ, v, w);
        return t == T_EQ ? equal : emit1(p, where, IR_NOT, equal);
    }
    bool swap = t == T_GT || t == T_GE;
    return emit2(p, where, t == T_LT || t == T_GT ? IR_LT : IR_LE, swap ? w : v, swap ? v : w);
}

static uint32_t parse_not(struct parse *p)
{
    const char *where = p->from;
    if (!accept_word(p, "not"))
        return parse_compare(p);
    uint32_t v = enter(p) ? parse_not(p) : 0;
    p->depth--;
    return emit1(p, where, IR_NOT, want_bool(p, where, v));
}

static uint32_t parse_logic(struct parse *p, bool is_or)
{
    uint32_t v = is_or ? parse_logic(p, false) : parse_not(p);
    for (;;) {
        const char *where = p->from;
        if (!accept_word(p, is_or ? "or" : "and"))
            return v;
        uint32_t w = is_or ? parse_logic(p, false) : parse_not(p);
        v = emit2(p, where, is_or ? IR_OR : IR_AND, want_bool(p, where, v), want_bool(p, where, w));
    }
}

static uint32_t parse_if(struct parse *p, const char *where)
{
    uint32_t cond = want_bool(p, where, parse_expr(p));
    if (!accept_word(p, "then"))
        expect(p, T_BAD, "then");
    uint32_t yes = parse_expr(p);
    if (!accept_word(p, "else"))
        expect(p, T_BAD, "else");
    return select_of(p, where, cond, yes, parse_expr(p));
}

static uint32_t parse_expr(struct parse *p)
{
    const char *where = p->from;
    uint32_t v = 0;
    if (enter(p))
        v = accept_word(p, "if") ? parse_if(p, where) : parse_logic(p, true);
    p->depth--;
    return p->failed ? 0 : v;
}

static bool is_reserved(const struct parse *p)
{
    static const char *const words[] = {"let", "if",  "then", "else",  "and",
                                        "or",  "not", "true", "false", "inf"};
    for (size_t i = 0; i < BASE_COUNT(words); i++) {
        if (is_word(p, words[i]))
            return true;
    }
    for (size_t i = 0; i < BASE_COUNT(functions); i++) {
        if (is_word(p, functions[i].name))
            return true;
    }
    return false;
}

static void parse_let(struct parse *p)
{
    struct let l = {.name = p->from, .len = p->len};
    if (p->lets == EXPR_LETS_MAX)
        fail_at(p, p->from, "more than %d lets", EXPR_LETS_MAX);
    else if (is_reserved(p))
        fail_at(p, p->from, "`%.*s` is a word of the language: choose another name", (int)p->len,
                p->from);
    expect(p, T_NAME, "a name");
    expect(p, T_ASSIGN, "=");
    l.value = parse_expr(p);
    expect(p, T_SEMI, "; after a let");
    if (!p->failed)
        p->let[p->lets++] = l;
}

enum err_code expr_parse(struct rdu_expr *x, const char *text, size_t len, struct err *e)
{
    struct parse p = {.x = x, .text = text, .at = text, .end = text + len, .e = e};
    p.from = text;
    next(&p);
    while (accept_word(&p, "let"))
        parse_let(&p);
    const char *where = p.from;
    uint32_t v = parse_expr(&p);
    accept(&p, T_SEMI);
    if (!p.failed && p.token != T_END)
        expect(&p, T_BAD, "an operator or the end");
    if (x->spec.result == RDU_EXPR_BOOL)
        v = want_bool(&p, where, v);
    else
        v = to_f32(&p, where, v);
    x->result = v;
    return p.failed ? ERR_INVALID : ERR_OK;
}
