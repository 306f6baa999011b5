/* Table-driven option parsing. argp and getopt_long print help in their own taste and exit on their
 * own; the commands here share one look and one set of exit codes instead. */
#include "daemon/cli.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLI_HELP_COLUMN 26

void cli_list_done(struct cli_list *l)
{
    free(l->items);
    *l = (struct cli_list){0};
}

int cli_refuse(const char *command, const struct err *e)
{
    fprintf(stderr, "switchyard %s: %s\n", command, e->msg[0] != 0 ? e->msg : "failed");
    return CLI_REFUSED;
}

int cli_wrong(const char *command, const char *fmt, ...)
{
    va_list ap;
    fprintf(stderr, "switchyard %s: ", command);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nTry 'switchyard %s --help'.\n", command);
    return CLI_WRONG;
}

/* ---- suggestions ------------------------------------------------------------------------- */

/* Edit distance with unit costs; words longer than the table are never close to anything. */
static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[64];
    size_t la = strlen(a), lb = strlen(b);
    if (la == 0 || lb >= BASE_COUNT(row))
        return 99;
    for (unsigned j = 0; j <= lb; j++)
        row[j] = j;
    for (unsigned i = 1; i <= la; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= lb; j++) {
            unsigned above = row[j];
            unsigned best = BASE_MIN(row[j - 1], above) + 1;
            row[j] = BASE_MIN(best, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[lb];
}

const char *cli_suggest(const char *word, const char *const *candidates, size_t count)
{
    const char *best = NULL;
    unsigned best_distance = 3;
    size_t len = strlen(word);
    for (size_t i = 0; i < count; i++) {
        unsigned distance = edit_distance(word, candidates[i]);
        if (distance < best_distance && distance < len) {
            best = candidates[i];
            best_distance = distance;
        }
    }
    return best;
}

static const char *suggest_option(const char *word, const struct cli_option *options)
{
    const char *names[64];
    size_t count = 0;
    for (const struct cli_option *o = options; o->name != NULL && count < BASE_COUNT(names); o++)
        names[count++] = o->name;
    return cli_suggest(word, names, count);
}

/* ---- help -------------------------------------------------------------------------------- */

static void print_option(const struct cli_option *o, FILE *to)
{
    char left[80];
    int n = snprintf(left, sizeof left, "  %c%c%s--%s%s%s", o->letter ? '-' : ' ',
                     o->letter ? o->letter : ' ', o->letter ? ", " : "  ", o->name,
                     o->value_name ? " " : "", o->value_name ? o->value_name : "");
    if (n < CLI_HELP_COLUMN)
        fprintf(to, "%-*s%s\n", CLI_HELP_COLUMN, left, o->help);
    else
        fprintf(to, "%s\n%*s%s\n", left, CLI_HELP_COLUMN, "", o->help);
}

void cli_print_help(const struct cli_spec *spec, FILE *to)
{
    fprintf(to, "Usage: switchyard %s%s%s%s\n\n%s\n", spec->command,
            spec->options->name != NULL ? " [options]" : "", spec->arguments[0] ? " " : "",
            spec->arguments, spec->about);
    fprintf(to, "\nOptions:\n");
    for (const struct cli_option *o = spec->options; o->name != NULL; o++)
        print_option(o, to);
    fprintf(to, "  -h, --help              show this\n");
    if (spec->examples != NULL && spec->examples[0] != 0)
        fprintf(to, "\nExamples:\n%s\n", spec->examples);
    fprintf(to, "\nExit status: 0 done, 1 refused (the reason is on stderr), 2 wrong usage.\n");
}

/* ---- values ------------------------------------------------------------------------------ */

static int store_uint(const struct cli_spec *spec, const struct cli_option *o, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != 0 || errno != 0)
        return cli_wrong(spec->command, "--%s wants a whole number, not '%s'", o->name, text);
    if (o->max > o->min && ((double)v < o->min || (double)v > o->max))
        return cli_wrong(spec->command, "--%s is %s but must be between %.0f and %.0f", o->name,
                         text, o->min, o->max);
    *(uint64_t *)o->value = v;
    return CLI_RUN;
}

static int store_real(const struct cli_spec *spec, const struct cli_option *o, const char *text)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end != 0 || v != v)
        return cli_wrong(spec->command, "--%s wants a number, not '%s'", o->name, text);
    if (o->max > o->min && (v < o->min || v > o->max))
        return cli_wrong(spec->command, "--%s is %s but must be between %g and %g", o->name, text,
                         o->min, o->max);
    *(double *)o->value = v;
    return CLI_RUN;
}

static int store_size(const struct cli_spec *spec, const struct cli_option *o, const char *text)
{
    struct err e = {0};
    if (size_parse(text, o->value, &e) != ERR_OK)
        return cli_wrong(spec->command, "--%s: %s", o->name, e.msg);
    return CLI_RUN;
}

static int store_value(const struct cli_spec *spec, const struct cli_option *o, const char *text)
{
    switch (o->kind) {
    case CLI_FLAG:
        return cli_wrong(spec->command, "--%s takes no value", o->name);
    case CLI_TEXT:
        *(const char **)o->value = text;
        return CLI_RUN;
    case CLI_SIZE:
        return store_size(spec, o, text);
    case CLI_UINT:
        return store_uint(spec, o, text);
    case CLI_REAL:
        return store_real(spec, o, text);
    case CLI_LIST: {
        struct cli_list *l = o->value;
        l->items = mem_grow(l->items, l->count + 1, sizeof *l->items);
        l->items[l->count++] = text;
        return CLI_RUN;
    }
    }
    return CLI_RUN;
}

/* ---- parsing ----------------------------------------------------------------------------- */

static const struct cli_option *find_option(const struct cli_option *options, const char *name,
                                            size_t len)
{
    for (const struct cli_option *o = options; o->name != NULL; o++)
        if (strlen(o->name) == len && memcmp(o->name, name, len) == 0)
            return o;
    return NULL;
}

static const struct cli_option *find_letter(const struct cli_option *options, char letter)
{
    for (const struct cli_option *o = options; o->name != NULL; o++)
        if (o->letter == letter)
            return o;
    return NULL;
}

/* One option at argv[*i]; consumes its value too. */
static int parse_option(int argc, char **argv, int *i, const struct cli_spec *spec)
{
    const char *word = argv[*i], *value = NULL;
    const struct cli_option *o;
    if (word[1] == '-') {
        size_t len = strcspn(word + 2, "=");
        o = find_option(spec->options, word + 2, len);
        value = word[2 + len] == '=' ? word + 2 + len + 1 : NULL;
    } else {
        o = find_letter(spec->options, word[1]);
        value = word[2] != 0 ? word + 2 : NULL;
    }
    if (o == NULL) {
        const char *near = word[1] == '-' ? suggest_option(word + 2, spec->options) : NULL;
        return near != NULL
                   ? cli_wrong(spec->command, "unknown option '%s'; did you mean --%s?", word, near)
                   : cli_wrong(spec->command, "unknown option '%s'", word);
    }
    if (o->kind == CLI_FLAG && value == NULL) {
        *(bool *)o->value = true;
        return CLI_RUN;
    }
    if (value == NULL) {
        if (*i + 1 >= argc)
            return cli_wrong(spec->command, "--%s wants a value (%s)", o->name, o->value_name);
        value = argv[++*i];
    }
    return store_value(spec, o, value);
}

static int check_arguments(const struct cli_spec *spec, size_t count)
{
    if (count >= spec->args_min)
        return CLI_RUN;
    return cli_wrong(spec->command, "something is missing; usage: switchyard %s %s", spec->command,
                     spec->arguments);
}

int cli_parse(int argc, char **argv, const struct cli_spec *spec, const char **args,
              size_t *ret_args)
{
    size_t count = 0;
    bool options_open = true;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (options_open && strcmp(word, "--") == 0) {
            options_open = false;
        } else if (options_open && (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)) {
            cli_print_help(spec, stdout);
            return CLI_DONE;
        } else if (options_open && word[0] == '-' && word[1] != 0) {
            int code = parse_option(argc, argv, &i, spec);
            if (code != CLI_RUN)
                return code;
        } else if (count < spec->args_max) {
            args[count++] = word;
        } else {
            return cli_wrong(spec->command, "unexpected argument '%s'", word);
        }
    }
    if (ret_args != NULL)
        *ret_args = count;
    return check_arguments(spec, count);
}

/* ---- verbs ---------------------------------------------------------------------------------- */

static void print_verbs(const char *command, const char *about, const struct cli_verb *verbs, size_t count,
                        FILE *to)
{
    fprintf(to, "%s\n\nUsage: switchyard %s VERB [options]\n\nVerbs:\n", about, command);
    for (size_t i = 0; i < count; i++)
        fprintf(to, "  %-10s%s\n", verbs[i].name, verbs[i].help);
    fprintf(to, "\n'switchyard %s VERB --help' teaches a verb.\n", command);
}

int cli_run_verb(const char *command, const char *about, const struct cli_verb *verbs, size_t count,
                 int argc, char **argv)
{
    bool help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    if (argc < 2 || help) {
        print_verbs(command, about, verbs, count, help ? stdout : stderr);
        return help ? CLI_DONE : CLI_WRONG;
    }
    const char **names = mem_array(count, sizeof *names);
    const char *near = NULL;
    for (size_t i = 0; i < count; i++) {
        names[i] = verbs[i].name;
        if (strcmp(argv[1], verbs[i].name) == 0) {
            free((void *)names);
            return verbs[i].run(argc - 1, argv + 1);
        }
    }
    near = cli_suggest(argv[1], names, count);
    free((void *)names);
    return cli_wrong(command, "there is no verb '%s'%s%s%s", argv[1], near ? "; did you mean '" : "",
                     near ? near : "", near ? "'?" : "");
}

/* ---- progress ---------------------------------------------------------------------------- */

#define BAR_WIDTH 30
#define BAR_PERIOD_NS 100000000ull /* redraw at most ten times a second */

void cli_bar_init(struct cli_bar *b)
{
    *b = (struct cli_bar){.terminal = isatty(STDERR_FILENO) == 1};
}

static void draw_bar(struct cli_bar *b, const char *what, uint64_t done, uint64_t total)
{
    char text[2][32], bar[BAR_WIDTH + 1];
    unsigned filled = total > 0 ? (unsigned)((double)done / (double)total * BAR_WIDTH) : 0;
    for (unsigned i = 0; i < BAR_WIDTH; i++)
        bar[i] = i < filled ? '=' : ' ';
    bar[BAR_WIDTH] = 0;
    fprintf(stderr, "\r%-24.24s [%s] %s / %s ", what, bar, size_format(done, text[0], 32),
            size_format(total, text[1], 32));
    b->open = true;
}

static bool report(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    struct cli_bar *b = ctx;
    uint64_t now = clock_ns();
    bool fresh = strncmp(b->what, what, sizeof b->what - 1) != 0;
    if (!b->terminal) {
        if (fresh)
            fprintf(stderr, "%s ...\n", what);
    } else if (fresh || done >= total || now - b->last_ns > BAR_PERIOD_NS) {
        if (fresh && b->open)
            fputc('\n', stderr);
        draw_bar(b, what, done, total);
        b->last_ns = now;
    }
    snprintf(b->what, sizeof b->what, "%s", what);
    return true;
}

struct progress cli_bar_progress(struct cli_bar *b)
{
    return (struct progress){.report = report, .ctx = b};
}

void cli_bar_done(struct cli_bar *b)
{
    if (b->open)
        fputc('\n', stderr);
    b->open = false;
}
