/* Jinja's lexer: source text to tokens, with the white space control of the chat configuration.
 * The whole source is cut before parsing: it is bounded, and looking ahead is then an index.
 *
 * White space around tags (trim_blocks, lstrip_blocks, one newline at the end of the source goes):
 * - `{%-`, `{{-`, `{#-` strip all white space before the tag, `-%}` and its kind all after it
 * - otherwise a block or comment tag that stands first on its line loses the blanks before it
 *   (`+` keeps them), and the newline directly after it goes (`+` keeps it)
 * - `{{ }}` does neither by itself */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct lex {
    struct parse *p;
    const char *s;
    size_t len, pos;
    int32_t line;
    bool line_starting; /* what was cut last ended with a newline, or nothing was cut yet */
    char closers[256];  /* expected closing brackets */
    uint32_t closers_count;
    size_t count, cap; /* of p->tokens */
};

/* ---- helpers --------------------------------------------------------------------------------- */

/* The array is the parse's, which frees it after the tree is built. */
static struct lex_token *push(struct lex *l, enum lex_kind kind)
{
    if (l->count == l->cap) {
        l->cap = l->cap == 0 ? 256 : l->cap * 2;
        l->p->tokens = mem_grow(l->p->tokens, l->cap, sizeof(*l->p->tokens));
    }
    struct lex_token *t = &l->p->tokens[l->count++];
    *t = (struct lex_token){.kind = kind, .line = l->line};
    return t;
}

static bool at(const struct lex *l, size_t pos, const char *text)
{
    size_t n = strlen(text);
    return l->len - pos >= n && memcmp(l->s + pos, text, n) == 0;
}

static size_t skip_space(const struct lex *l, size_t pos)
{
    while (pos < l->len) {
        size_t step;
        if (!text_is_space(text_utf8_get(l->s + pos, &step)))
            break;
        pos += step;
    }
    return pos;
}

/* Where the white space that ends at `to` begins, not before `from`. */
static size_t strip_end(const struct lex *l, size_t from, size_t to)
{
    while (to > from) {
        size_t back = to - 1, step;
        while (back > from && ((unsigned char)l->s[back] & 0xC0) == 0x80)
            back--;
        if (!text_is_space(text_utf8_get(l->s + back, &step)))
            break;
        to = back;
    }
    return to;
}

static void advance(struct lex *l, size_t to)
{
    for (size_t i = l->pos; i < to; i++)
        l->line += l->s[i] == '\n';
    if (to > l->pos)
        l->line_starting = l->s[to - 1] == '\n';
    l->pos = to;
}

/* ---- text between tags ----------------------------------------------------------------------- */

/* Emit source[from, to) as data, stripped on its right side as the tag at `to` asks:
 * `sign` is the character behind the tag's opening, `is_print` for {{. */
static void emit_data(struct lex *l, size_t from, size_t to, char sign, bool is_print)
{
    size_t end = to;
    if (sign == '-') {
        end = strip_end(l, from, to);
    } else if (sign != '+' && !is_print) {
        size_t blank = to; /* start of the tag's line, or of the text */
        while (blank > from && l->s[blank - 1] != '\n')
            blank--;
        bool at_line = blank > from || l->line_starting;
        if (at_line && strip_end(l, blank, to) == blank)
            end = blank;
    }
    if (end > from) {
        struct lex_token *t = push(l, LEX_DATA);
        t->data = l->s + from;
        t->len = end - from;
    }
}

/* What follows a block or comment tag that ends at `pos`: `sign` is the character in front of its
 * closing. Returns where the text goes on. */
static size_t after_tag(const struct lex *l, size_t pos, char sign)
{
    if (sign == '-')
        return skip_space(l, pos);
    if (sign != '+' && pos < l->len && l->s[pos] == '\n')
        return pos + 1;
    return pos;
}

static void lex_comment(struct lex *l)
{
    size_t end = l->pos + 2;
    while (end < l->len && !at(l, end, "#}"))
        end++;
    if (end >= l->len)
        parse_fail(l->p, ERR_INVALID, l->line, "a comment is not closed");
    char sign = end > l->pos + 2 ? l->s[end - 1] : '\0';
    /* "{#-#}" opens with the minus; it is not also the closing one. */
    if (end == l->pos + 3 && (sign == '-' || sign == '+'))
        sign = '\0';
    advance(l, after_tag(l, end + 2, sign));
}

/* If a block tag of just `name` begins at `pos` (on "{%"): where it ends, and the characters behind
 * its opening and before its closing. */
static bool word_tag(const struct lex *l, size_t pos, const char *name, size_t *ret_end,
                     char *ret_open, char *ret_close)
{
    size_t at_name = pos + 2;
    *ret_open = '\0';
    if (at_name < l->len && (l->s[at_name] == '-' || l->s[at_name] == '+'))
        *ret_open = l->s[at_name++];
    at_name = skip_space(l, at_name);
    if (!at(l, at_name, name))
        return false;
    size_t end = skip_space(l, at_name + strlen(name));
    *ret_close = '\0';
    if (end < l->len && (l->s[end] == '-' || l->s[end] == '+'))
        *ret_close = l->s[end++];
    if (!at(l, end, "%}"))
        return false;
    *ret_end = end + 2;
    return true;
}

/* At {% raw %}: emit what is inside as it is. */
static void lex_raw(struct lex *l, size_t begin, char open_close)
{
    int32_t line = l->line;
    /* The newline after {% raw %} stays: Jinja trims it after other tags only. */
    advance(l, open_close == '-' ? skip_space(l, begin) : begin);
    size_t from = l->pos, pos = from, end = 0;
    char open = '\0', close = '\0';
    while (pos < l->len && !(at(l, pos, "{%") && word_tag(l, pos, "endraw", &end, &open, &close)))
        pos++;
    if (pos >= l->len)
        parse_fail(l->p, ERR_INVALID, line, "a raw block is not closed");
    emit_data(l, from, pos, open, false);
    advance(l, after_tag(l, end, close));
}

/* ---- inside tags ----------------------------------------------------------------------------- */

static bool name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static void lex_name(struct lex *l)
{
    size_t end = l->pos;
    while (end < l->len && (name_start(l->s[end]) || is_digit(l->s[end]))) {
        size_t step;
        if (text_is_space(text_utf8_get(l->s + end, &step)))
            break;
        end += step;
    }
    struct lex_token *t = push(l, LEX_NAME);
    t->data = l->s + l->pos;
    t->len = end - l->pos;
    advance(l, end);
}

/* End of digits of `base` with single underscores between them. */
static size_t digits_end(const struct lex *l, size_t pos, int base)
{
    while (pos < l->len) {
        char c = l->s[pos];
        int d = is_digit(c)                          ? c - '0'
                : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                     : 99;
        bool joined = c == '_' && pos + 1 < l->len && pos > 0 && l->s[pos + 1] != '_';
        if (d >= base && !joined)
            break;
        pos++;
    }
    return pos;
}

static char *copy_digits(struct lex *l, size_t from, size_t to)
{
    char *text = parse_alloc(l->p, to - from + 1);
    size_t n = 0;
    for (size_t i = from; i < to; i++) {
        if (l->s[i] != '_')
            text[n++] = l->s[i];
    }
    return text;
}

static void push_int(struct lex *l, size_t from, size_t to, int base)
{
    errno = 0;
    char *text = copy_digits(l, from, to), *end;
    long long i = strtoll(text, &end, base);
    if (errno != 0 || *end != '\0' || end == text)
        parse_fail(l->p, ERR_UNSUPPORTED, l->line,
                   "the number %.40s does not fit 64 bits or is malformed", text);
    push(l, LEX_INT)->i = i;
    advance(l, to);
}

static void lex_number(struct lex *l)
{
    size_t pos = l->pos;
    if (l->s[pos] == '0' && pos + 1 < l->len) {
        char mark = (char)(l->s[pos + 1] | 32);
        int base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
        if (base != 0) {
            size_t from = pos + 2;
            push_int(l, from, digits_end(l, from, base), base);
            return;
        }
    }
    size_t end = digits_end(l, pos, 10);
    bool is_float = false;
    /* "x.1.2" counts: after a dot there are no fractions. */
    bool after_dot = l->count > 0 && tok_is_op(&l->p->tokens[l->count - 1], '.');
    if (!after_dot && end + 1 < l->len && l->s[end] == '.' && is_digit(l->s[end + 1])) {
        end = digits_end(l, end + 1, 10);
        is_float = true;
    }
    if (!after_dot && end < l->len && (l->s[end] | 32) == 'e') {
        size_t exp = end + 1;
        if (exp < l->len && (l->s[exp] == '+' || l->s[exp] == '-'))
            exp++;
        if (exp < l->len && is_digit(l->s[exp])) {
            end = digits_end(l, exp, 10);
            is_float = true;
        }
    }
    if (!is_float) {
        push_int(l, pos, end, 10);
        return;
    }
    char *text = copy_digits(l, pos, end);
    push(l, LEX_FLOAT)->f = strtod(text, NULL);
    advance(l, end);
}

static int hex_digit(char c)
{
    if (is_digit(c))
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* \xHH, \uHHHH, \UHHHHHHHH: the number, and where it ends. */
static uint32_t lex_hex(struct lex *l, size_t *pos, unsigned digits)
{
    uint32_t cp = 0;
    for (unsigned i = 0; i < digits; i++, (*pos)++) {
        int d = *pos < l->len ? hex_digit(l->s[*pos]) : -1;
        if (d < 0)
            parse_fail(l->p, ERR_INVALID, l->line, "a \\x, \\u or \\U escape is cut short");
        cp = cp << 4 | (uint32_t)d;
    }
    return cp;
}

static uint32_t lex_octal(struct lex *l, size_t *pos)
{
    uint32_t cp = 0;
    for (unsigned i = 0; i < 3 && *pos < l->len && l->s[*pos] >= '0' && l->s[*pos] <= '7'; i++)
        cp = cp * 8 + (uint32_t)(l->s[(*pos)++] - '0');
    return cp;
}

/* A surrogate pair written as two escapes is one character. */
static uint32_t join_surrogates(struct lex *l, size_t *pos, uint32_t high)
{
    if (high >= 0xD800 && high < 0xDC00 && at(l, *pos, "\\u")) {
        size_t after = *pos + 2;
        uint32_t low = lex_hex(l, &after, 4);
        if (low >= 0xDC00 && low < 0xE000) {
            *pos = after;
            return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
        }
    }
    if ((high >= 0xD800 && high < 0xE000) || high > 0x10FFFF)
        parse_fail(l->p, ERR_INVALID, l->line, "the escape \\u%04x is no character", high);
    return high;
}

/* An escape with `pos` on the character behind the backslash; appends what it means. */
static size_t lex_escape(struct lex *l, size_t pos, char *out, size_t *n)
{
    static const char plain[] = {['n'] = '\n', ['t'] = '\t', ['r'] = '\r', ['b'] = '\b',
                                 ['f'] = '\f', ['a'] = '\a', ['v'] = '\v'};
    char c = l->s[pos++];
    uint32_t cp;
    if (c == '\n')
        return pos; /* a line goes on */
    if (c == '\\' || c == '\'' || c == '"') {
        cp = (unsigned char)c;
    } else if (c > 0 && (size_t)c < sizeof(plain) && plain[(size_t)c] != 0) {
        cp = (unsigned char)plain[(size_t)c];
    } else if (c == 'x') {
        cp = lex_hex(l, &pos, 2);
    } else if (c == 'u') {
        cp = lex_hex(l, &pos, 4);
        cp = join_surrogates(l, &pos, cp);
    } else if (c == 'U') {
        cp = lex_hex(l, &pos, 8);
        cp = join_surrogates(l, &pos, cp);
    } else if (c >= '0' && c <= '7') {
        pos--;
        cp = lex_octal(l, &pos);
    } else if (c == 'N') {
        parse_fail(l->p, ERR_UNSUPPORTED, l->line, "\\N{name} escapes are not supported");
    } else { /* Python keeps a backslash that escapes nothing */
        out[(*n)++] = '\\';
        return pos - 1;
    }
    *n += utf8_encode(cp, out + *n);
    return pos;
}

static void lex_string(struct lex *l)
{
    char quote = l->s[l->pos];
    size_t end = l->pos + 1;
    while (end < l->len && l->s[end] != quote)
        end += l->s[end] == '\\' ? 2 : 1;
    if (end >= l->len)
        parse_fail(l->p, ERR_INVALID, l->line, "a string is not closed");
    /* No escape is shorter than what it stands for, but for \n and its kind: 1 byte for 2. */
    char *text = parse_alloc(l->p, end - l->pos + 4);
    size_t n = 0;
    for (size_t pos = l->pos + 1; pos < end;) {
        if (l->s[pos] == '\\')
            pos = lex_escape(l, pos + 1, text, &n);
        else
            text[n++] = l->s[pos++];
    }
    struct lex_token *t = push(l, LEX_STRING);
    t->data = text;
    t->len = n;
    advance(l, end + 1);
}

static void track_bracket(struct lex *l, char c)
{
    if (c == '(' || c == '[' || c == '{') {
        if (l->closers_count == sizeof(l->closers))
            parse_fail(l->p, ERR_UNSUPPORTED, l->line, "more than %zu nested brackets",
                       sizeof(l->closers));
        l->closers[l->closers_count++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (l->closers_count == 0)
            parse_fail(l->p, ERR_INVALID, l->line, "unexpected '%c'", c);
        char want = l->closers[--l->closers_count];
        if (want != c)
            parse_fail(l->p, ERR_INVALID, l->line, "unexpected '%c', expected '%c'", c, want);
    }
}

static void lex_operator(struct lex *l)
{
    static const char *const doubles[] = {"//", "**", "==", "!=", ">=", "<="};
    for (size_t i = 0; i < BASE_COUNT(doubles); i++) {
        if (at(l, l->pos, doubles[i])) {
            push(l, LEX_OP)->op = OP2(doubles[i][0], doubles[i][1]);
            advance(l, l->pos + 2);
            return;
        }
    }
    char c = l->s[l->pos];
    if (c == '\0' || strchr("+-*/%~[](){}.:|,;=<>", c) == NULL)
        parse_fail(l->p, ERR_INVALID, l->line, "unexpected character '%c'",
                   c >= 0x20 && c < 0x7F ? c : '?');
    track_bracket(l, c);
    push(l, LEX_OP)->op = c;
    advance(l, l->pos + 1);
}

/* Does the tag close at pos? Inside brackets nothing closes it. */
static bool tag_closes(struct lex *l, bool is_print)
{
    if (l->closers_count > 0)
        return false;
    char c = l->s[l->pos];
    char sign = c == '-' || (c == '+' && !is_print) ? c : '\0';
    size_t pos = l->pos + (sign != '\0');
    if (!at(l, pos, is_print ? "}}" : "%}"))
        return false;
    pos += 2;
    (void)push(l, is_print ? LEX_PRINT_CLOSE : LEX_BLOCK_CLOSE);
    advance(l, !is_print ? after_tag(l, pos, sign) : sign == '-' ? skip_space(l, pos) : pos);
    return true;
}

static void lex_tag(struct lex *l, bool is_print, char sign)
{
    int32_t line = l->line;
    (void)push(l, is_print ? LEX_PRINT_OPEN : LEX_BLOCK_OPEN);
    advance(l, l->pos + 2 + (sign == '-' || sign == '+'));
    for (;;) {
        advance(l, skip_space(l, l->pos));
        if (l->pos >= l->len)
            parse_fail(l->p, ERR_INVALID, line, "a tag is not closed");
        if (tag_closes(l, is_print))
            return;
        char c = l->s[l->pos];
        if (is_digit(c))
            lex_number(l);
        else if (name_start(c))
            lex_name(l);
        else if (c == '"' || c == '\'')
            lex_string(l);
        else
            lex_operator(l);
    }
}

/* ---- the whole source ------------------------------------------------------------------------ */

/* \r\n and \r are newlines; one newline at the end goes. */
static char *normalize(struct parse *p, const char *source, size_t len, size_t *ret_len)
{
    char *s = parse_alloc(p, len + 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (source[i] == '\r') {
            s[n++] = '\n';
            if (i + 1 < len && source[i + 1] == '\n')
                i++;
        } else {
            s[n++] = source[i];
        }
    }
    if (n > 0 && s[n - 1] == '\n')
        n--;
    *ret_len = n;
    return s;
}

static void lex_step(struct lex *l)
{
    size_t from = l->pos, to = from;
    while (to < l->len && !(l->s[to] == '{' && to + 1 < l->len &&
                            (l->s[to + 1] == '{' || l->s[to + 1] == '%' || l->s[to + 1] == '#')))
        to++;
    if (to >= l->len) {
        if (to > from) {
            struct lex_token *t = push(l, LEX_DATA);
            t->data = l->s + from;
            t->len = to - from;
        }
        advance(l, to);
        return;
    }
    char kind = l->s[to + 1], sign = to + 2 < l->len ? l->s[to + 2] : '\0';
    if (sign != '-' && sign != '+')
        sign = '\0';
    emit_data(l, from, to, sign, kind == '{');
    advance(l, to);
    size_t end = 0;
    char open, close = '\0';
    if (kind == '#')
        lex_comment(l);
    else if (kind == '%' && word_tag(l, to, "raw", &end, &open, &close) && close != '+')
        lex_raw(l, end, close);
    else
        lex_tag(l, kind == '{', sign);
}

void lex_source(struct parse *p, const char *source, size_t len)
{
    struct lex l = {.p = p, .line = 1, .line_starting = true};
    l.s = normalize(p, source, len, &l.len);
    while (l.pos < l.len)
        lex_step(&l);
    (void)push(&l, LEX_END);
}
