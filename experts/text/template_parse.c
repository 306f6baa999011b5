/* Statements of the template language, and what both halves of the parser share. Recursive descent
 * over the tokens of the whole source; the tree lives in blocks that belong to the template. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <stdlib.h>
#include <string.h>

/* ---- shared ---------------------------------------------------------------------------------- */

enum { TREE_BLOCK_BYTES = 16 * 1024, PARSE_DEPTH_MAX = 200 };

struct tree_block {
    struct tree_block *next;
    size_t used, cap;
    _Alignas(16) char data[];
};

void *parse_alloc(struct parse *p, size_t bytes)
{
    struct chat_template *t = p->t;
    bytes = (bytes + 15) & ~(size_t)15;
    if (t->blocks == NULL || t->blocks->cap - t->blocks->used < bytes) {
        size_t cap = BASE_MAX(bytes, (size_t)TREE_BLOCK_BYTES);
        struct tree_block *b = mem_alloc(sizeof(*b) + cap);
        b->cap = cap;
        b->next = t->blocks;
        t->blocks = b;
    }
    void *mem = t->blocks->data + t->blocks->used;
    t->blocks->used += bytes;
    return mem;
}

void tree_done(struct chat_template *t)
{
    while (t->blocks != NULL) {
        struct tree_block *next = t->blocks->next;
        free(t->blocks);
        t->blocks = next;
    }
}

void parse_fail(struct parse *p, enum err_code code, int32_t line, const char *fmt, ...)
{
    char msg[480];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    p->code = err_set(p->e, code, "chat template, line %d: %s", line, msg);
    longjmp(p->on_error, 1);
}

void parse_enter(struct parse *p)
{
    if (++p->depth > PARSE_DEPTH_MAX)
        parse_fail(p, ERR_UNSUPPORTED, p->tok->line, "nested more than %d deep", PARSE_DEPTH_MAX);
}

struct str *parse_str(struct parse *p, const char *data, size_t len)
{
    struct str *s = parse_alloc(p, sizeof(*s));
    char *copy = parse_alloc(p, len + 1);
    memcpy(copy, data, len);
    *s = (struct str){.data = copy, .len = (uint32_t)len};
    s->chars = (uint32_t)text_utf8_count(copy, len); /* now: renders share the tree */
    return s;
}

static uint32_t intern(struct parse *p, const char *data, size_t len)
{
    struct chat_template *t = p->t;
    /* Templates mention a few dozen names; a scan is as fast as a table and simpler. */
    for (uint32_t i = 0; i < t->names_count; i++) {
        if (t->names[i]->len == len && memcmp(t->names[i]->data, data, len) == 0)
            return i;
    }
    if (t->names_count == p->names_cap) {
        if (p->names_cap >= 4096)
            parse_fail(p, ERR_UNSUPPORTED, p->tok->line, "more than 4096 different names");
        p->names_cap = p->names_cap == 0 ? 64 : p->names_cap * 2;
        t->names = mem_grow(t->names, p->names_cap, sizeof(*t->names));
        t->name_globals = mem_grow(t->name_globals, p->names_cap, sizeof(*t->name_globals));
    }
    t->names[t->names_count] = parse_str(p, data, len);
    t->name_globals[t->names_count] = global_find(data, len);
    return t->names_count++;
}

uint32_t parse_name(struct parse *p, const struct lex_token *tok)
{
    return intern(p, tok->data, tok->len);
}

bool tok_is_name(const struct lex_token *t, const char *name)
{
    return t->kind == LEX_NAME && strlen(name) == t->len && memcmp(t->data, name, t->len) == 0;
}

bool parse_skip_op(struct parse *p, int op)
{
    if (!tok_is_op(p->tok, op))
        return false;
    p->tok++;
    return true;
}

bool parse_skip_name(struct parse *p, const char *name)
{
    if (!tok_is_name(p->tok, name))
        return false;
    p->tok++;
    return true;
}

const char *tok_describe(const struct lex_token *t, char buf[64])
{
    switch (t->kind) {
    case LEX_END:
        return "the end of the template";
    case LEX_DATA:
        return "text";
    case LEX_PRINT_OPEN:
        return "{{";
    case LEX_PRINT_CLOSE:
        return "}}";
    case LEX_BLOCK_OPEN:
        return "{%";
    case LEX_BLOCK_CLOSE:
        return "%}";
    case LEX_STRING:
        return "a string";
    case LEX_INT:
    case LEX_FLOAT:
        return "a number";
    case LEX_NAME:
        (void)snprintf(buf, 64, "'%.*s'", (int)BASE_MIN(t->len, (size_t)48), t->data);
        return buf;
    case LEX_OP:
        break;
    }
    if (t->op > 0xFF)
        (void)snprintf(buf, 64, "'%c%c'", t->op >> 8, t->op & 0xFF);
    else
        (void)snprintf(buf, 64, "'%c'", t->op);
    return buf;
}

void parse_expect_op(struct parse *p, int op)
{
    char buf[64];
    if (!parse_skip_op(p, op))
        parse_fail(p, ERR_INVALID, p->tok->line, "expected '%c', got %s", op,
                   tok_describe(p->tok, buf));
}

const struct lex_token *parse_expect_name(struct parse *p)
{
    char buf[64];
    if (p->tok->kind != LEX_NAME)
        parse_fail(p, ERR_INVALID, p->tok->line, "expected a name, got %s",
                   tok_describe(p->tok, buf));
    return p->tok++;
}

/* ---- bodies ---------------------------------------------------------------------------------- */

static struct stmt *stmt_new(struct parse *p, enum stmt_kind kind, int32_t line)
{
    struct stmt *s = parse_alloc(p, sizeof(*s));
    s->kind = kind;
    s->line = line;
    return s;
}

static void expect_close(struct parse *p)
{
    char buf[64];
    if (p->tok->kind != LEX_BLOCK_CLOSE)
        parse_fail(p, ERR_INVALID, p->tok->line, "expected %%}, got %s", tok_describe(p->tok, buf));
    p->tok++;
}

static bool at_any(const struct lex_token *t, const char *const *names)
{
    for (size_t i = 0; names != NULL && names[i] != NULL; i++) {
        if (tok_is_name(t, names[i]))
            return true;
    }
    return false;
}

static struct stmt *parse_statement(struct parse *p);

static struct stmt *parse_print_tag(struct parse *p)
{
    struct stmt *s = stmt_new(p, STMT_PRINT, p->tok->line);
    char buf[64];
    p->tok++;
    s->expr = parse_tuple(p, true, NULL);
    if (p->tok->kind != LEX_PRINT_CLOSE)
        parse_fail(p, ERR_INVALID, p->tok->line, "expected }}, got %s", tok_describe(p->tok, buf));
    p->tok++;
    return s;
}

static struct stmt *parse_data(struct parse *p)
{
    struct stmt *s = stmt_new(p, STMT_DATA, p->tok->line);
    s->data = p->tok->data;
    s->len = p->tok->len;
    p->tok++;
    return s;
}

/* Statements until a tag named in `ends`, whose name is then the current token. `ends` NULL: until
 * the end of the source. `what` is the tag that wants to be closed. */
static struct body parse_body(struct parse *p, const char *const *ends, const char *what,
                              int32_t line)
{
    parse_enter(p);
    struct body body = {0};
    struct stmt **tail = &body.first;
    while (p->tok->kind != LEX_END) {
        struct stmt *s;
        if (p->tok->kind == LEX_DATA) {
            s = parse_data(p);
        } else if (p->tok->kind == LEX_PRINT_OPEN) {
            s = parse_print_tag(p);
        } else {
            p->tok++; /* {% */
            if (at_any(p->tok, ends)) {
                p->depth--;
                return body;
            }
            s = parse_statement(p);
            expect_close(p);
        }
        *tail = s;
        while (*tail != NULL)
            tail = &(*tail)->next;
    }
    if (ends != NULL)
        parse_fail(p, ERR_INVALID, line, "the '%s' tag is not closed: no '%s' follows", what,
                   ends[0]);
    p->depth--;
    return body;
}

/* The body behind a tag's head, and its end tag, which is consumed up to its name. */
static struct body parse_tag_body(struct parse *p, const char *what, const char *end, int32_t line)
{
    const char *const ends[] = {end, NULL};
    (void)parse_skip_op(p, ':');
    expect_close(p);
    struct body b = parse_body(p, ends, what, line);
    p->tok++;
    return b;
}

/* ---- statements ------------------------------------------------------------------------------ */

static struct stmt *parse_if(struct parse *p)
{
    static const char *const ends[] = {"endif", "elif", "else", NULL};
    static const char *const end[] = {"endif", NULL};
    int32_t line = p->tok[-1].line;
    struct stmt *s = stmt_new(p, STMT_IF, line);
    struct branch **tail = &s->branches;
    bool is_else = false;
    do {
        struct branch *b = parse_alloc(p, sizeof(*b));
        if (!is_else)
            b->test = parse_tuple(p, false, NULL);
        (void)parse_skip_op(p, ':');
        expect_close(p);
        b->body = parse_body(p, is_else ? end : ends, "if", line);
        *tail = b;
        tail = &b->next;
        is_else = tok_is_name(p->tok, "else");
    } while (!tok_is_name(p->tok++, "endif"));
    return s;
}

static void refuse_loop_target(struct parse *p, const struct expr *target)
{
    if (target->kind == EXPR_NAME && str_is(p->t->names[target->name], "loop"))
        parse_fail(p, ERR_INVALID, target->line, "a for loop can not assign to 'loop'");
    for (uint32_t i = 0; target->kind == EXPR_TUPLE && i < target->count; i++)
        refuse_loop_target(p, target->items[i]);
}

static struct stmt *parse_for(struct parse *p)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    char buf[64];
    int32_t line = p->tok[-1].line;
    struct stmt *s = stmt_new(p, STMT_FOR, line);
    s->name = intern(p, "loop", 4);
    s->target = parse_target(p, false, "in");
    refuse_loop_target(p, s->target);
    if (!parse_skip_name(p, "in"))
        parse_fail(p, ERR_INVALID, p->tok->line, "expected 'in', got %s",
                   tok_describe(p->tok, buf));
    s->expr = parse_tuple(p, false, "recursive");
    if (parse_skip_name(p, "if"))
        s->test = parse_expression(p);
    s->recursive = parse_skip_name(p, "recursive");
    (void)parse_skip_op(p, ':');
    expect_close(p);
    p->loops++;
    s->body = parse_body(p, ends, "for", line);
    p->loops--;
    if (tok_is_name(p->tok++, "else"))
        s->otherwise = parse_tag_body(p, "for", "endfor", line);
    return s;
}

static struct stmt *parse_set(struct parse *p)
{
    int32_t line = p->tok[-1].line;
    struct expr *target = parse_target(p, true, NULL);
    if (parse_skip_op(p, '=')) {
        struct stmt *s = stmt_new(p, STMT_SET, line);
        s->target = target;
        s->expr = parse_tuple(p, true, NULL);
        return s;
    }
    struct stmt *s = stmt_new(p, STMT_SET_BLOCK, line);
    s->target = target;
    s->expr = parse_filters(p, NULL, false);
    s->body = parse_tag_body(p, "set", "endset", line);
    return s;
}

static void parse_params(struct parse *p, struct signature *sig)
{
    enum { PARAMS_MAX = 64 };
    uint32_t params[PARAMS_MAX];
    struct expr *defaults[PARAMS_MAX];
    bool optional = false;
    parse_expect_op(p, '(');
    while (!tok_is_op(p->tok, ')')) {
        if (sig->count > 0)
            parse_expect_op(p, ',');
        const struct lex_token *tok = parse_expect_name(p);
        if (sig->count == PARAMS_MAX)
            parse_fail(p, ERR_UNSUPPORTED, tok->line, "more than %d parameters", PARAMS_MAX);
        params[sig->count] = parse_name(p, tok);
        defaults[sig->count] = NULL;
        if (parse_skip_op(p, '=')) {
            defaults[sig->count] = parse_expression(p);
            optional = true;
        } else if (optional) {
            parse_fail(p, ERR_INVALID, tok->line, "a parameter without a default follows one with");
        }
        sig->count++;
    }
    p->tok++;
    sig->params = parse_alloc(p, sig->count * sizeof(*params));
    sig->defaults = parse_alloc(p, sig->count * sizeof(struct expr *));
    for (uint32_t i = 0; i < sig->count; i++) {
        sig->params[i] = params[i];
        sig->defaults[i] = defaults[i];
    }
}

/* The body of a macro: break and continue can not leave it, and it may ask for the arguments that
 * have no name. */
static void parse_macro_body(struct parse *p, struct stmt *s, const char *what, const char *end)
{
    uint32_t loops = p->loops;
    uint32_t caller = p->used_caller, varargs = p->used_varargs, kwargs = p->used_kwargs;
    p->loops = 0;
    s->body = parse_tag_body(p, what, end, s->line);
    p->loops = loops;
    s->sig->uses_caller = p->used_caller != caller;
    s->sig->uses_varargs = p->used_varargs != varargs;
    s->sig->uses_kwargs = p->used_kwargs != kwargs;
}

static struct stmt *parse_macro(struct parse *p)
{
    struct stmt *s = stmt_new(p, STMT_MACRO, p->tok[-1].line);
    s->sig = parse_alloc(p, sizeof(*s->sig));
    s->name = parse_name(p, parse_expect_name(p));
    parse_params(p, s->sig);
    parse_macro_body(p, s, "macro", "endmacro");
    return s;
}

static struct stmt *parse_call(struct parse *p)
{
    struct stmt *s = stmt_new(p, STMT_CALL, p->tok[-1].line);
    s->sig = parse_alloc(p, sizeof(*s->sig));
    if (tok_is_op(p->tok, '('))
        parse_params(p, s->sig);
    s->expr = parse_expression(p);
    if (s->expr->kind != EXPR_CALL)
        parse_fail(p, ERR_INVALID, s->line, "a call block needs a call, such as name(...)");
    parse_macro_body(p, s, "call", "endcall");
    return s;
}

static struct stmt *parse_filter_block(struct parse *p)
{
    struct stmt *s = stmt_new(p, STMT_FILTER, p->tok[-1].line);
    s->expr = parse_filters(p, NULL, true);
    s->body = parse_tag_body(p, "filter", "endfilter", s->line);
    return s;
}

static struct stmt *parse_with(struct parse *p)
{
    enum { TARGETS_MAX = 32 };
    struct expr *targets[TARGETS_MAX], *values[TARGETS_MAX];
    struct stmt *s = stmt_new(p, STMT_WITH, p->tok[-1].line);
    while (p->tok->kind != LEX_BLOCK_CLOSE && !tok_is_op(p->tok, ':')) {
        if (s->count == TARGETS_MAX)
            parse_fail(p, ERR_UNSUPPORTED, s->line, "more than %d variables in a with",
                       TARGETS_MAX);
        if (s->count > 0)
            parse_expect_op(p, ',');
        targets[s->count] = parse_target(p, false, NULL);
        parse_expect_op(p, '=');
        values[s->count++] = parse_expression(p);
    }
    s->targets = parse_alloc(p, s->count * sizeof(struct expr *));
    s->values = parse_alloc(p, s->count * sizeof(struct expr *));
    for (uint32_t i = 0; i < s->count; i++) {
        s->targets[i] = targets[i];
        s->values[i] = values[i];
    }
    s->body = parse_tag_body(p, "with", "endwith", s->line);
    return s;
}

static struct stmt *parse_generation(struct parse *p)
{
    struct stmt *s = stmt_new(p, STMT_SCOPE, p->tok[-1].line);
    uint32_t loops = p->loops;
    p->loops = 0; /* Jinja makes a function of the body */
    s->body = parse_tag_body(p, "generation", "endgeneration", s->line);
    p->loops = loops;
    return s;
}

static struct stmt *parse_autoescape(struct parse *p)
{
    struct stmt *s = stmt_new(p, STMT_SCOPE, p->tok[-1].line);
    const struct expr *on = parse_expression(p);
    if (on->kind != EXPR_CONST || value_truthy(&on->value))
        parse_fail(p, ERR_UNSUPPORTED, s->line, "autoescape is not supported other than false");
    s->body = parse_tag_body(p, "autoescape", "endautoescape", s->line);
    return s;
}

static struct stmt *parse_block(struct parse *p)
{
    struct stmt *s = stmt_new(p, STMT_BLOCK, p->tok[-1].line);
    const struct lex_token *name = parse_expect_name(p);
    if (parse_skip_name(p, "scoped"))
        s->kind = STMT_SCOPE;
    if (tok_is_name(p->tok, "required"))
        parse_fail(p, ERR_UNSUPPORTED, s->line, "required blocks are not supported");
    uint32_t loops = p->loops;
    p->loops = 0;
    s->body = parse_tag_body(p, "block", "endblock", s->line);
    p->loops = loops;
    if (p->tok->kind == LEX_NAME && p->tok->len == name->len &&
        memcmp(p->tok->data, name->data, name->len) == 0)
        p->tok++;
    return s;
}

/* {% print a, b %}: one statement each. */
static struct stmt *parse_print(struct parse *p)
{
    int32_t line = p->tok[-1].line;
    struct stmt *first = NULL, **tail = &first;
    while (p->tok->kind != LEX_BLOCK_CLOSE) {
        if (first != NULL)
            parse_expect_op(p, ',');
        *tail = stmt_new(p, STMT_PRINT, line);
        (*tail)->expr = parse_expression(p);
        tail = &(*tail)->next;
    }
    return first != NULL ? first : stmt_new(p, STMT_DATA, line);
}

static struct stmt *parse_break(struct parse *p)
{
    if (p->loops == 0)
        parse_fail(p, ERR_INVALID, p->tok[-1].line, "'break' outside of a loop");
    return stmt_new(p, STMT_BREAK, p->tok[-1].line);
}

static struct stmt *parse_continue(struct parse *p)
{
    if (p->loops == 0)
        parse_fail(p, ERR_INVALID, p->tok[-1].line, "'continue' outside of a loop");
    return stmt_new(p, STMT_CONTINUE, p->tok[-1].line);
}

/* A tag nobody here knows: say whether it is out of place, not built, or no tag of Jinja at all. */
static void fail_unknown_tag(struct parse *p, const struct lex_token *tag)
{
    static const char *const known[] = {"extends", "include", "import",    "from", "do",
                                        "trans",   "debug",   "pluralize", NULL};
    if (at_any(tag, known))
        parse_fail(p, ERR_UNSUPPORTED, tag->line, "the tag '%.*s' is not supported", (int)tag->len,
                   tag->data);
    bool closes = (tag->len > 3 && memcmp(tag->data, "end", 3) == 0) || tok_is_name(tag, "else") ||
                  tok_is_name(tag, "elif");
    parse_fail(p, closes ? ERR_INVALID : ERR_UNSUPPORTED, tag->line,
               closes ? "the tag '%.*s' closes nothing that is open here" : "unknown tag '%.*s'",
               (int)BASE_MIN(tag->len, (size_t)60), tag->data);
}

static const struct {
    const char *name;
    struct stmt *(*parse)(struct parse *p);
} tags[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call},
    {"filter", parse_filter_block},
    {"with", parse_with},
    {"generation", parse_generation},
    {"autoescape", parse_autoescape},
    {"block", parse_block},
    {"print", parse_print},
    {"break", parse_break},
    {"continue", parse_continue},
};

static struct stmt *parse_statement(struct parse *p)
{
    const struct lex_token *tag = parse_expect_name(p);
    for (size_t i = 0; i < BASE_COUNT(tags); i++) {
        if (tok_is_name(tag, tags[i].name))
            return tags[i].parse(p);
    }
    fail_unknown_tag(p, tag);
    return NULL;
}

void parse_template(struct parse *p)
{
    p->t->body = parse_body(p, NULL, "template", 1);
}
