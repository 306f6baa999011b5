/* What the files of the chat template interpreter share: the syntax tree, the tables of filters,
 * tests, globals and methods, and the calling convention between them. Values: template_value.h.
 *
 * The language is Jinja 3.1 as the Python chat code configures it: immutable sandbox, trim_blocks,
 * lstrip_blocks, loop controls, tojson without HTML escaping, raise_exception, strftime_now and
 * generation blocks. What is not built here is refused by name when the template is parsed. */
#ifndef SWITCHYARD_EXPERTS_TEMPLATE_PRIV_H
#define SWITCHYARD_EXPERTS_TEMPLATE_PRIV_H

#include "experts/text/template_value.h"

/* ---- lexer ----------------------------------------------------------------------------------- */

enum lex_kind {
    LEX_END,
    LEX_DATA,       /* text outside of tags, white space control applied */
    LEX_PRINT_OPEN, /* {{ */
    LEX_PRINT_CLOSE,
    LEX_BLOCK_OPEN, /* {% */
    LEX_BLOCK_CLOSE,
    LEX_NAME,
    LEX_STRING,
    LEX_INT,
    LEX_FLOAT,
    LEX_OP, /* `op` says which */
};
/* Operators: a character, or two packed. */
#define OP2(a, b) ((a) << 8 | (b))

struct lex_token {
    enum lex_kind kind;
    int32_t line;
    int op;
    const char *data; /* text of DATA, NAME and STRING (escapes resolved) */
    size_t len;
    int64_t i;
    double f;
};
/* Cut a whole source into p->tokens; the last one is LEX_END. */
struct parse;
void lex_source(struct parse *p, const char *source, size_t len);

/* ---- syntax tree ----------------------------------------------------------------------------- */

enum expr_kind {
    EXPR_CONST,
    EXPR_NAME,
    EXPR_LIST,
    EXPR_TUPLE,
    EXPR_DICT,   /* items: key, value, key, value ... */
    EXPR_ATTR,   /* a.name */
    EXPR_ITEM,   /* a[b] */
    EXPR_SLICE,  /* a[items[0]:items[1]:items[2]], each may be NULL */
    EXPR_CALL,   /* a(args) */
    EXPR_FILTER, /* a | filter(args); a NULL: what the block gives */
    EXPR_TEST,   /* a is test(args) */
    EXPR_NOT,
    EXPR_NEG,
    EXPR_POS,
    EXPR_BINARY,  /* a op b */
    EXPR_CONCAT,  /* items ~ items */
    EXPR_COMPARE, /* a ops[0] items[0] ops[1] items[1] ... */
    EXPR_AND,
    EXPR_OR,
    EXPR_COND,  /* a if b else c */
    EXPR_NSREF, /* name.attr as a target of set */
};
enum { COMPARE_IN = OP2('i', 'n'), COMPARE_NOT_IN = OP2('n', 'i') };

struct call_args {
    struct expr **items; /* positional */
    uint32_t count;
    struct keyword {
        struct str *name;
        struct expr *value;
    } * keywords;
    uint32_t keywords_count;
    struct expr *star, *star_star; /* NULL = none */
};

struct expr {
    enum expr_kind kind;
    int32_t line;
    uint32_t height; /* longest way down: bounds the recursion */
    int op;
    uint32_t name;      /* NAME, NSREF: index into the template's names */
    struct str *attr;   /* ATTR, NSREF */
    struct value value; /* CONST */
    struct expr *a, *b, *c;
    struct expr **items;
    int *ops;
    uint32_t count;
    const struct call_args *args;
    const struct filter_def *filter;
    const struct test_def *test;
};

enum stmt_kind {
    STMT_DATA,
    STMT_PRINT,
    STMT_IF,
    STMT_FOR,
    STMT_SET,
    STMT_SET_BLOCK,
    STMT_MACRO,
    STMT_CALL,
    STMT_FILTER,
    STMT_WITH,
    STMT_SCOPE, /* generation: its body in a scope of its own */
    STMT_BLOCK, /* block: its body sees the top level only */
    STMT_BREAK,
    STMT_CONTINUE,
};

struct body {
    struct stmt *first;
};
struct branch {
    struct expr *test; /* NULL = else */
    struct body body;
    struct branch *next;
};
/* Parameters of a macro or a call block. */
struct signature {
    uint32_t *params;       /* names */
    struct expr **defaults; /* [count], NULL = none */
    uint32_t count;
    bool uses_caller, uses_varargs, uses_kwargs;
};
struct stmt {
    enum stmt_kind kind;
    int32_t line;
    struct stmt *next;
    const char *data; /* DATA */
    size_t len;
    struct expr *expr;       /* PRINT; FOR: what is iterated; SET: the value; SET_BLOCK, FILTER: the
                              * filters or NULL; CALL: the call */
    struct expr *target;     /* FOR, SET, SET_BLOCK */
    struct expr *test;       /* FOR: its if */
    struct branch *branches; /* IF */
    struct body body, otherwise;
    struct signature *sig;           /* MACRO, CALL */
    uint32_t name;                   /* MACRO; FOR: that of `loop` */
    struct expr **targets, **values; /* WITH */
    uint32_t count;
    bool recursive; /* FOR */
};

struct chat_template {
    struct body body;
    struct str **names;     /* every name the template mentions */
    uint32_t *name_globals; /* [names] global function, GLOBAL_NONE = none */
    uint32_t names_count;
    struct tree_block *blocks; /* memory of the tree */
};
#define GLOBAL_NONE UINT32_MAX

/* ---- parser ---------------------------------------------------------------------------------- */

struct parse {
    struct chat_template *t;
    struct lex_token *tokens;
    const struct lex_token *tok; /* the current one */
    uint32_t names_cap;
    uint32_t depth; /* of the recursion */
    uint32_t loops; /* enclosing loops that break and continue may mean */
    uint32_t used_caller, used_varargs, used_kwargs; /* how often the names were read so far */
    struct err *e;
    enum err_code code;
    jmp_buf on_error;
};
void parse_fail(struct parse *p, enum err_code code, int32_t line, const char *fmt, ...)
    BASE_PRINTF(4, 5) __attribute__((noreturn));
void *parse_alloc(struct parse *p, size_t bytes); /* zeroed, lives with the template */
void tree_done(struct chat_template *t);
struct str *parse_str(struct parse *p, const char *data, size_t len); /* copies */
uint32_t parse_name(struct parse *p, const struct lex_token *tok);
void parse_enter(struct parse *p);

static inline bool tok_is_op(const struct lex_token *t, int op)
{
    return t->kind == LEX_OP && t->op == op;
}
bool tok_is_name(const struct lex_token *t, const char *name);
bool parse_skip_op(struct parse *p, int op);
bool parse_skip_name(struct parse *p, const char *name);
void parse_expect_op(struct parse *p, int op);
const struct lex_token *parse_expect_name(struct parse *p);
const char *tok_describe(const struct lex_token *t, char buf[64]);

/* template_expr.c */
struct expr *parse_expression(struct parse *p);
/* With commas a tuple. `with_cond`: `x if y` may follow; `stop`: a name that ends the tuple. */
struct expr *parse_tuple(struct parse *p, bool with_cond, const char *stop);
struct expr *parse_target(struct parse *p, bool with_namespace, const char *stop);
struct expr *parse_filters(struct parse *p, struct expr *input, bool at_name);
/* template_parse.c */
void parse_template(struct parse *p);

/* ---- running --------------------------------------------------------------------------------- */

/* A scope: names bound in it, and where else to look. */
struct frame {
    struct frame *parent; /* NULL: the top level, whose names are rt->globals */
    struct binding {
        uint32_t name;
        struct value value;
    } * items;
    uint32_t count, cap;
};
struct value frame_get(struct rt *rt, const struct frame *f, uint32_t name);
void frame_set(struct rt *rt, struct frame *f, uint32_t name, struct value v);

struct macro {
    const struct stmt *stmt; /* MACRO, or CALL for a caller */
    struct frame *frame;     /* where it was defined */
};
void macro_repr(const struct macro *m, struct buf *out);

struct loop {
    struct iter *iter;
    const struct stmt *stmt;
    struct frame *outer; /* the scope around the for, for recursion */
    struct value iterable, current, before, after, changed;
    bool has_after, has_changed;
    int64_t index0, length; /* length -1 = not known yet */
    uint32_t depth0;
};
void loop_repr(struct rt *rt, struct loop *l, struct buf *out);
struct value loop_attr(struct rt *rt, struct value self, const struct str *name);
struct value loop_recurse(struct rt *rt, struct loop *l, struct value iterable);

enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };
enum flow exec_body(struct rt *rt, const struct body *b, struct frame *f);
/* Run the body and take what it wrote out of the output again. */
struct str *exec_capture(struct rt *rt, const struct body *b, struct frame *f, enum flow *ret_flow);
struct value eval(struct rt *rt, struct frame *f, const struct expr *x);
void assign(struct rt *rt, struct frame *f, const struct expr *target, struct value v);

/* Evaluated arguments of a call. */
struct args {
    struct value *items;
    uint32_t count;
    struct named {
        const struct str *name;
        struct value value;
    } * named;
    uint32_t named_count;
};
struct args eval_args(struct rt *rt, struct frame *f, const struct call_args *a);
struct value call_value(struct rt *rt, struct value callee, const struct args *a);
struct value macro_call(struct rt *rt, struct macro *m, const struct args *a);

/* Sort arguments into parameters: "width first blank" names them in order, `ret` [their number];
 * what was not given is MISSING. Fails as Python does on too many, unknown or doubled ones, and
 * unless the first `required` are there. */
void args_bind(struct rt *rt, const struct args *a, const char *what, const char *params,
               uint32_t required, struct value *ret);
/* Typed access to a bound argument, with a default for a missing one (strings: NULL = none). */
int64_t arg_int(struct rt *rt, const struct value *v, int64_t otherwise, const char *what);
/* MISSING and none: NULL. */
struct str *arg_chars(struct rt *rt, struct value *v, const char *what);
bool arg_bool(const struct value *v, bool otherwise);
struct str *arg_str(struct rt *rt, struct value *v, struct str *otherwise, const char *what)
    __attribute__((returns_nonnull));

/* ---- operations (template_ops.c, template_attr.c) -------------------------------------------- */

struct value op_binary(struct rt *rt, int op, struct value a, struct value b);
struct value op_negate(struct rt *rt, struct value v);
bool op_compare(struct rt *rt, int op, struct value a, struct value b);
bool op_contains(struct rt *rt, struct value needle, struct value hay);
struct value get_attr(struct rt *rt, struct value obj, const struct str *name); /* obj.name */
struct value get_item(struct rt *rt, struct value obj, struct value key);       /* obj[key] */
struct value get_slice(struct rt *rt, struct value obj, const struct value bounds[3]);
/* "a.b.0" as the filters' attribute arguments mean it; `dflt` MISSING = none. */
struct value get_path(struct rt *rt, struct value obj, struct value path, struct value dflt);

/* ---- tables ---------------------------------------------------------------------------------- */

struct filter_def {
    const char *name;
    struct value (*fn)(struct rt *rt, struct value in, const struct args *a);
};
const struct filter_def *filter_find(const char *name, size_t len);
extern const struct filter_def filters_text[], filters_seq[], filters_lazy[]; /* name NULL ends */

struct test_def {
    const char *name;
    bool (*fn)(struct rt *rt, struct value in, const struct args *a);
    bool takes_argument;
};
const struct test_def *test_find(const char *name, size_t len);
bool test_call(struct rt *rt, const struct test_def *def, struct value in, const struct args *a);

uint32_t global_find(const char *name, size_t len); /* GLOBAL_NONE = none */
const char *global_name(uint32_t function);
struct value global_call(struct rt *rt, uint32_t function, const struct args *a);

struct method_def {
    const char *name;
    struct value (*fn)(struct rt *rt, struct value self, const struct args *a);
};
/* NULL = no such method. Fails for one that Python has and this interpreter has not. */
const struct method_def *method_find(struct rt *rt, const struct value *self,
                                     const struct str *name);
extern const struct method_def methods_str[], methods_str_test[]; /* name NULL ends */

/* ---- shared helpers -------------------------------------------------------------------------- */

bool text_is_printable(uint32_t cp);
enum text_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_FOLD, CASE_SWAP, CASE_CAPITALIZE };
struct value str_as(struct rt *rt, struct str *s, bool markup); /* the same text, so marked */
struct str *str_case(struct rt *rt, struct str *s, enum text_case how);
bool str_is_upper(const struct str *s);
bool str_is_lower(const struct str *s);
bool str_is_title(const struct str *s);
bool text_is_word(uint32_t cp); /* \w: letters, digits and the underscore */
/* strip(): `chars` NULL = white space. `side` < 0 left, > 0 right, 0 both. */
struct str *str_strip(struct rt *rt, struct str *s, struct str *chars, int side);
struct str *str_escape_html(struct rt *rt, struct str *s);
struct str *str_replace(struct rt *rt, struct str *s, struct str *from, struct str *to,
                        int64_t count);
/* Byte offset of needle in s from byte `from`, -1 = absent. */
int64_t str_find(const struct str *s, const struct str *needle, size_t from);
struct list *str_split_lines(struct rt *rt, struct str *s, bool keep_ends);
/* `s % args` and s.format(...). */
struct str *str_percent(struct rt *rt, struct str *s, struct value args);
struct str *str_format(struct rt *rt, struct str *s, const struct args *a);
/* Stable order of the items as positions; `reverse` keeps equal ones in place, as Python does. */
const uint32_t *sort_order(struct rt *rt, struct list *l, bool reverse);
/* Lower case for strings, all else as it is: how Jinja sorts and groups. */
struct value fold_case(struct rt *rt, struct value v);
struct value strftime_value(struct rt *rt, struct value format);

#endif
