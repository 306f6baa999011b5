/* Methods of str, dict, list, tuple, range and cycler objects: Python's, but for those that would
 * change an object, which the sandbox forbids, and a few that are refused by name. */
#include "experts/text/template_priv.h"
#include "experts/text/text_utf8.h"

#include <string.h>

static void no_args(struct rt *rt, const struct args *a, const char *what)
{
    args_bind(rt, a, what, "", 0, NULL);
}

static struct value new_markup(struct rt *rt, struct value self, struct str *s)
{
    return str_as(rt, s, self.str->markup);
}

/* Methods of Markup that would escape what they are given. */
static void refuse_markup(struct rt *rt, struct value self)
{
    if (self.str->markup)
        rt_fail(rt, ERR_UNSUPPORTED, "this method of a string marked safe is not supported");
}

/* ---- case and strip -------------------------------------------------------------------------- */

static struct value change_case(struct rt *rt, struct value self, const struct args *a,
                                enum text_case how)
{
    no_args(rt, a, "a method that changes case");
    return new_markup(rt, self, str_case(rt, self.str, how));
}

static struct value m_upper(struct rt *rt, struct value self, const struct args *a)
{
    return change_case(rt, self, a, CASE_UPPER);
}

static struct value m_lower(struct rt *rt, struct value self, const struct args *a)
{
    return change_case(rt, self, a, CASE_LOWER);
}

static struct value m_title(struct rt *rt, struct value self, const struct args *a)
{
    return change_case(rt, self, a, CASE_TITLE);
}

static struct value m_capitalize(struct rt *rt, struct value self, const struct args *a)
{
    return change_case(rt, self, a, CASE_CAPITALIZE);
}

static struct value m_swapcase(struct rt *rt, struct value self, const struct args *a)
{
    return change_case(rt, self, a, CASE_SWAP);
}

static struct value m_casefold(struct rt *rt, struct value self, const struct args *a)
{
    return change_case(rt, self, a, CASE_FOLD);
}

static struct value strip(struct rt *rt, struct value self, const struct args *a, int side)
{
    struct value v;
    args_bind(rt, a, "strip", "chars", 0, &v);
    struct str *chars = arg_chars(rt, &v, "strip");
    return value_str(str_strip(rt, self.str, chars, side));
}

static struct value m_strip(struct rt *rt, struct value self, const struct args *a)
{
    return strip(rt, self, a, 0);
}

static struct value m_lstrip(struct rt *rt, struct value self, const struct args *a)
{
    return strip(rt, self, a, -1);
}

static struct value m_rstrip(struct rt *rt, struct value self, const struct args *a)
{
    return strip(rt, self, a, 1);
}

/* ---- split and join -------------------------------------------------------------------------- */

static void push_part(struct rt *rt, struct list *l, struct str *s, size_t from, size_t to)
{
    rt_steps(rt, 1);
    list_push(rt, l, value_str(str_slice(rt, s, from, to - from)));
}

/* At white space; the rest after `max` cuts loses the blanks in front and keeps all others. */
static struct list *split_space(struct rt *rt, struct str *s, int64_t max)
{
    struct list *l = list_new(rt, 0);
    size_t pos = 0, step;
    for (;;) {
        while (pos < s->len && text_is_space(text_utf8_get(s->data + pos, &step)))
            pos += step;
        if (pos >= s->len)
            return l;
        size_t from = pos;
        if (max == 0) {
            push_part(rt, l, s, from, s->len);
            return l;
        }
        while (pos < s->len && !text_is_space(text_utf8_get(s->data + pos, &step)))
            pos += step;
        push_part(rt, l, s, from, pos);
        max -= max > 0;
    }
}

static void reverse_list(struct list *l)
{
    for (uint32_t i = 0; i < l->count / 2; i++) {
        struct value v = l->items[i];
        l->items[i] = l->items[l->count - 1 - i];
        l->items[l->count - 1 - i] = v;
    }
}

static size_t char_before(const struct str *s, size_t pos)
{
    do {
        pos--;
    } while (((unsigned char)s->data[pos] & 0xC0) == 0x80);
    return pos;
}

static bool space_before(const struct str *s, size_t pos)
{
    size_t step;
    return text_is_space(text_utf8_get(s->data + char_before(s, pos), &step));
}

static struct list *rsplit_space(struct rt *rt, struct str *s, int64_t max)
{
    struct list *l = list_new(rt, 0);
    size_t to = s->len;
    for (;;) {
        while (to > 0 && space_before(s, to))
            to = char_before(s, to);
        if (to == 0)
            break;
        size_t from = to;
        if (max == 0) {
            push_part(rt, l, s, 0, to);
            break;
        }
        while (from > 0 && !space_before(s, from))
            from = char_before(s, from);
        push_part(rt, l, s, from, to);
        to = from;
        max -= max > 0;
    }
    reverse_list(l);
    return l;
}

static struct list *split_at(struct rt *rt, struct str *s, const struct str *sep, int64_t max)
{
    struct list *l = list_new(rt, 0);
    size_t from = 0;
    for (int64_t at = 0; max != 0 && (at = str_find(s, sep, from)) >= 0; max -= max > 0) {
        push_part(rt, l, s, from, (size_t)at);
        from = (size_t)at + sep->len;
    }
    push_part(rt, l, s, from, s->len);
    return l;
}

/* Last occurrence of needle that ends at or before `to`; -1 = absent. */
static int64_t find_last(const struct str *s, const struct str *needle, size_t to)
{
    if (needle->len > to)
        return -1;
    for (size_t at = to - needle->len + 1; at > 0; at--) {
        if (memcmp(s->data + at - 1, needle->data, needle->len) == 0)
            return (int64_t)at - 1;
    }
    return -1;
}

static struct list *rsplit_at(struct rt *rt, struct str *s, const struct str *sep, int64_t max)
{
    struct list *l = list_new(rt, 0);
    size_t to = s->len;
    for (int64_t at = 0; max != 0 && (at = find_last(s, sep, to)) >= 0; max -= max > 0) {
        push_part(rt, l, s, (size_t)at + sep->len, to);
        to = (size_t)at;
    }
    push_part(rt, l, s, 0, to);
    reverse_list(l);
    return l;
}

static struct value split(struct rt *rt, struct value self, const struct args *a, bool from_right)
{
    struct value v[2];
    args_bind(rt, a, "split", "sep maxsplit", 0, v);
    int64_t max = arg_int(rt, &v[1], -1, "split");
    struct str *sep = arg_chars(rt, &v[0], "split");
    if (sep != NULL && sep->len == 0)
        rt_fail(rt, ERR_INVALID, "empty separator");
    if (sep == NULL)
        return value_list(from_right ? rsplit_space(rt, self.str, max)
                                     : split_space(rt, self.str, max));
    return value_list(from_right ? rsplit_at(rt, self.str, sep, max)
                                 : split_at(rt, self.str, sep, max));
}

static struct value m_split(struct rt *rt, struct value self, const struct args *a)
{
    return split(rt, self, a, false);
}

static struct value m_rsplit(struct rt *rt, struct value self, const struct args *a)
{
    return split(rt, self, a, true);
}

static struct value m_splitlines(struct rt *rt, struct value self, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "splitlines", "keepends", 0, &v);
    return value_list(str_split_lines(rt, self.str, arg_bool(&v, false)));
}

static struct value partition(struct rt *rt, struct value self, const struct args *a, bool last)
{
    struct value v;
    args_bind(rt, a, "partition", "sep", 1, &v);
    struct str *s = self.str, *sep = arg_str(rt, &v, NULL, "partition");
    if (sep->len == 0)
        rt_fail(rt, ERR_INVALID, "empty separator");
    int64_t at = last ? find_last(s, sep, s->len) : str_find(s, sep, 0);
    size_t from = at >= 0 ? (size_t)at : last ? 0 : s->len;
    size_t to = at >= 0 ? from + sep->len : from;
    struct list *l = list_new(rt, 3);
    push_part(rt, l, s, 0, from);
    push_part(rt, l, s, from, to);
    push_part(rt, l, s, to, s->len);
    return value_tuple(l);
}

static struct value m_partition(struct rt *rt, struct value self, const struct args *a)
{
    return partition(rt, self, a, false);
}

static struct value m_rpartition(struct rt *rt, struct value self, const struct args *a)
{
    return partition(rt, self, a, true);
}

static struct value m_join(struct rt *rt, struct value self, const struct args *a)
{
    struct value v, item;
    refuse_markup(rt, self);
    args_bind(rt, a, "join", "iterable", 1, &v);
    struct iter *it = iter_of(rt, v);
    struct buf *b = rt_take_scratch(rt);
    bool first = true;
    while (iter_next(rt, it, &item)) {
        if (item.kind != VALUE_STR)
            rt_fail(rt, ERR_INVALID, "join: expected str, %s found", value_type_name(&item));
        if (!first)
            buf_append(b, self.str->data, self.str->len);
        first = false;
        rt_room(rt, b->len);
        buf_append(b, item.str->data, item.str->len);
    }
    return value_str(rt_give_str(rt, b));
}

/* ---- search ---------------------------------------------------------------------------------- */

/* The part of self between the optional start and end, in bytes and where it begins in characters.
 */
static struct str *window(struct rt *rt, struct str *s, const struct value v[2], size_t *ret_from,
                          int64_t *ret_chars, bool *ret_empty)
{
    int64_t count = (int64_t)str_chars(s);
    int64_t from = v[0].kind == VALUE_NONE ? 0 : arg_int(rt, &v[0], 0, "start");
    int64_t to = v[1].kind == VALUE_NONE ? count : arg_int(rt, &v[1], count, "end");
    from = from < 0 ? BASE_MAX(from + count, (int64_t)0) : from;
    to = to < 0 ? BASE_MAX(to + count, (int64_t)0) : BASE_MIN(to, count);
    *ret_empty = from > to; /* then not even "" is found */
    from = BASE_MIN(from, to);
    size_t begin = text_utf8_offset(s->data, s->len, (size_t)from);
    size_t len = text_utf8_offset(s->data + begin, s->len - begin, (size_t)(to - from));
    *ret_from = begin;
    *ret_chars = from;
    return str_slice(rt, s, begin, len);
}

/* Character index of the first or last occurrence, -1 = absent. */
static int64_t search(struct rt *rt, struct value self, const struct args *a, bool last)
{
    struct value v[3];
    size_t from;
    int64_t chars;
    bool empty;
    args_bind(rt, a, "find", "sub start end", 1, v);
    struct str *sub = arg_str(rt, &v[0], NULL, "find");
    struct str *part = window(rt, self.str, &v[1], &from, &chars, &empty);
    int64_t at = last ? find_last(part, sub, part->len) : str_find(part, sub, 0);
    return at < 0 || empty ? -1 : chars + (int64_t)text_utf8_count(part->data, (size_t)at);
}

static struct value m_find(struct rt *rt, struct value self, const struct args *a)
{
    return value_int(search(rt, self, a, false));
}

static struct value m_rfind(struct rt *rt, struct value self, const struct args *a)
{
    return value_int(search(rt, self, a, true));
}

static struct value found(struct rt *rt, int64_t at)
{
    if (at < 0)
        rt_fail(rt, ERR_INVALID, "substring not found");
    return value_int(at);
}

static struct value m_index(struct rt *rt, struct value self, const struct args *a)
{
    return found(rt, search(rt, self, a, false));
}

static struct value m_rindex(struct rt *rt, struct value self, const struct args *a)
{
    return found(rt, search(rt, self, a, true));
}

static struct value m_count(struct rt *rt, struct value self, const struct args *a)
{
    struct value v[3];
    size_t from;
    int64_t chars, n = 0;
    bool empty;
    args_bind(rt, a, "count", "sub start end", 1, v);
    struct str *sub = arg_str(rt, &v[0], NULL, "count");
    struct str *part = window(rt, self.str, &v[1], &from, &chars, &empty);
    if (empty)
        return value_int(0);
    if (sub->len == 0)
        return value_int((int64_t)str_chars(part) + 1);
    for (int64_t at = str_find(part, sub, 0); at >= 0; n++)
        at = str_find(part, sub, (size_t)at + sub->len);
    return value_int(n);
}

static bool has_affix(const struct str *s, const struct str *affix, bool at_end)
{
    if (affix->len > s->len)
        return false;
    size_t from = at_end ? s->len - affix->len : 0;
    return memcmp(s->data + from, affix->data, affix->len) == 0;
}

static struct value affix_test(struct rt *rt, struct value self, const struct args *a, bool at_end)
{
    struct value v[3];
    size_t from;
    int64_t chars;
    bool empty;
    args_bind(rt, a, at_end ? "endswith" : "startswith", "affix start end", 1, v);
    const struct str *part = window(rt, self.str, &v[1], &from, &chars, &empty);
    if (empty)
        return value_bool(false);
    if (v[0].kind != VALUE_TUPLE)
        return value_bool(
            has_affix(part, arg_str(rt, &v[0], NULL, "startswith or endswith"), at_end));
    for (uint32_t i = 0; i < v[0].list->count; i++) {
        if (has_affix(part, arg_str(rt, &v[0].list->items[i], NULL, "startswith or endswith"),
                      at_end))
            return value_bool(true);
    }
    return value_bool(false);
}

static struct value m_startswith(struct rt *rt, struct value self, const struct args *a)
{
    return affix_test(rt, self, a, false);
}

static struct value m_endswith(struct rt *rt, struct value self, const struct args *a)
{
    return affix_test(rt, self, a, true);
}

static struct value m_removeprefix(struct rt *rt, struct value self, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "removeprefix", "prefix", 1, &v);
    const struct str *fix = arg_str(rt, &v, NULL, "removeprefix");
    if (!has_affix(self.str, fix, false))
        return self;
    return value_str(str_slice(rt, self.str, fix->len, self.str->len - fix->len));
}

static struct value m_removesuffix(struct rt *rt, struct value self, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "removesuffix", "suffix", 1, &v);
    const struct str *fix = arg_str(rt, &v, NULL, "removesuffix");
    if (!has_affix(self.str, fix, true))
        return self;
    return value_str(str_slice(rt, self.str, 0, self.str->len - fix->len));
}

static struct value m_replace(struct rt *rt, struct value self, const struct args *a)
{
    struct value v[3];
    refuse_markup(rt, self);
    args_bind(rt, a, "replace", "old new count", 2, v);
    struct str *old = arg_str(rt, &v[0], NULL, "replace");
    struct str *new = arg_str(rt, &v[1], NULL, "replace");
    return value_str(str_replace(rt, self.str, old, new, arg_int(rt, &v[2], -1, "replace")));
}

/* ---- padding --------------------------------------------------------------------------------- */

static void put_fill(struct buf *b, const struct str *fill, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        buf_append(b, fill->data, fill->len);
}

static struct value pad(struct rt *rt, struct value self, const struct args *a, int side)
{
    struct value v[2];
    args_bind(rt, a, "a method that pads", "width fillchar", 1, v);
    int64_t width = arg_int(rt, &v[0], 0, "the width"), chars = (int64_t)str_chars(self.str);
    struct str *fill = arg_str(rt, &v[1], str_wrap(rt, " ", 1), "the fill character");
    if (str_chars(fill) != 1)
        rt_fail(rt, ERR_INVALID, "the fill character must be exactly one character long");
    if (width <= chars)
        return self;
    rt_room(rt, (size_t)BASE_MIN(width, (int64_t)INT32_MAX) * fill->len);
    int64_t room = width - chars;
    int64_t left = side < 0 ? 0 : side > 0 ? room : room / 2 + (room & width & 1);
    struct buf *b = rt_take_scratch(rt);
    put_fill(b, fill, left);
    buf_append(b, self.str->data, self.str->len);
    put_fill(b, fill, room - left);
    return new_markup(rt, self, rt_give_str(rt, b));
}

static struct value m_ljust(struct rt *rt, struct value self, const struct args *a)
{
    return pad(rt, self, a, -1);
}

static struct value m_rjust(struct rt *rt, struct value self, const struct args *a)
{
    return pad(rt, self, a, 1);
}

static struct value m_center(struct rt *rt, struct value self, const struct args *a)
{
    return pad(rt, self, a, 0);
}

static struct value m_zfill(struct rt *rt, struct value self, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "zfill", "width", 1, &v);
    const struct str *s = self.str;
    int64_t width = arg_int(rt, &v, 0, "zfill"), chars = (int64_t)str_chars(self.str);
    if (width <= chars)
        return self;
    rt_room(rt, (size_t)width);
    bool sign = s->len > 0 && (s->data[0] == '+' || s->data[0] == '-');
    struct buf *b = rt_take_scratch(rt);
    buf_append(b, s->data, sign);
    for (int64_t i = chars; i < width; i++)
        buf_append(b, "0", 1);
    buf_append(b, s->data + sign, s->len - sign);
    return value_str(rt_give_str(rt, b));
}

static struct value m_expandtabs(struct rt *rt, struct value self, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "expandtabs", "tabsize", 0, &v);
    int64_t size = arg_int(rt, &v, 8, "expandtabs"), column = 0;
    const struct str *s = self.str;
    struct buf *b = rt_take_scratch(rt);
    for (size_t pos = 0; pos < s->len;) {
        size_t step = text_utf8_step(s->data[pos]);
        if (s->data[pos] == '\t') {
            int64_t fill = size > 0 ? size - column % size : 0;
            rt_room(rt, b->len + (size_t)fill);
            put_fill(b, str_wrap(rt, " ", 1), fill);
            column += fill;
        } else {
            buf_append(b, s->data + pos, step);
            column = s->data[pos] == '\n' || s->data[pos] == '\r' ? 0 : column + 1;
        }
        pos += step;
    }
    return value_str(rt_give_str(rt, b));
}

/* ---- format ---------------------------------------------------------------------------------- */

static struct value m_format(struct rt *rt, struct value self, const struct args *a)
{
    return value_str(str_format(rt, self.str, a));
}

static struct value m_format_map(struct rt *rt, struct value self, const struct args *a)
{
    struct value v;
    args_bind(rt, a, "format_map", "mapping", 1, &v);
    if (v.kind != VALUE_DICT)
        rt_fail(rt, ERR_INVALID, "format_map needs a dict, not %s", value_type_name(&v));
    struct args named = {.named_count = v.dict->count};
    named.named = rt_array(rt, (size_t)v.dict->count + 1, sizeof(*named.named));
    for (uint32_t i = 0; i < v.dict->count; i++)
        named.named[i] =
            (struct named){value_to_str(rt, &v.dict->entries[i].key), v.dict->entries[i].value};
    return value_str(str_format(rt, self.str, &named));
}

const struct method_def methods_str[] = {
    {"capitalize", m_capitalize},
    {"casefold", m_casefold},
    {"center", m_center},
    {"count", m_count},
    {"endswith", m_endswith},
    {"expandtabs", m_expandtabs},
    {"find", m_find},
    {"format", m_format},
    {"format_map", m_format_map},
    {"index", m_index},
    {"join", m_join},
    {"ljust", m_ljust},
    {"lower", m_lower},
    {"lstrip", m_lstrip},
    {"partition", m_partition},
    {"removeprefix", m_removeprefix},
    {"removesuffix", m_removesuffix},
    {"replace", m_replace},
    {"rfind", m_rfind},
    {"rindex", m_rindex},
    {"rjust", m_rjust},
    {"rpartition", m_rpartition},
    {"rsplit", m_rsplit},
    {"rstrip", m_rstrip},
    {"split", m_split},
    {"splitlines", m_splitlines},
    {"startswith", m_startswith},
    {"strip", m_strip},
    {"swapcase", m_swapcase},
    {"title", m_title},
    {"upper", m_upper},
    {"zfill", m_zfill},
    {NULL, NULL},
};
