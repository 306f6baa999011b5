/* switchyard route: ask the router, train it, measure it. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "conf/conf.h"
#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/json_print.h"
#include "daemon/route_encoder.h"
#include "router/router.h"

#define ENCODER_HELP "folder or GGUF of the sentence encoder (default: router.encoder); 'none' for none"
#define HEAD_HELP "the head (default: router.head of the configuration)"

static enum err_code open_head(const char *path, struct router_head **ret, struct err *e)
{
    struct conf c;
    conf_init(&c);
    enum err_code code = conf_load_environment(&c, e);
    if (code == ERR_OK && path == NULL && *c.router_head == 0)
        code = err_set(e, ERR_INVALID, "no router head: give --head FILE or set router.head");
    if (code == ERR_OK)
        code = router_head_open(path ? path : c.router_head, ret, e);
    conf_done(&c);
    return code;
}

/* NULL stays where none is named. */
static enum err_code open_encoder(const char *path, struct route_encoder **ret, struct err *e)
{
    struct conf c;
    conf_init(&c);
    enum err_code code = conf_load_environment(&c, e);
    const char *from = path ? path : c.router_encoder;
    if (code == ERR_OK && *from != 0 && strcmp(from, "none") != 0)
        code = route_encoder_open(from, ret, e);
    conf_done(&c);
    return code;
}

/* A head that has an encoder stage decides worse without it: say so. */
static void warn_without_encoder(const struct router_head *h, const struct route_encoder *n)
{
    const struct router_encoder *view = route_encoder_view(n);
    if (router_head_width(h) > 0 && (view == NULL || view->id != router_head_encoder_id(h)))
        fprintf(stderr, "switchyard route: the head's encoder stage is not used: %s\n",
                view ? "it was trained with another encoder" : "no encoder was named (--encoder)");
}

/* ---- one decision ----------------------------------------------------------------------------------------- */

static void print_decision(const struct router_head *h, const struct router_decision *d, const float *scores,
                           const struct router_evidence *ev, size_t ev_count, uint64_t ns, bool json)
{
    size_t labels = router_head_labels(h);
    if (json) {
        json_t *all = json_object(), *why = json_array();
        for (size_t i = 0; i < labels; i++)
            json_object_set_new(all, router_head_label(h, i), json_real((double)scores[i]));
        for (size_t i = 0; i < ev_count; i++)
            json_array_append_new(why, json_pack("{s:s,s:f}", "ngram", ev[i].ngram, "weight", ev[i].weight));
        json_print_line(json_pack("{s:s,s:f,s:s,s:s,s:f,s:o,s:o}", "expert", d->label, "confidence", d->confidence,
                             "reason", router_reason_name(d->reason), "best",
                             d->best_idx >= 0 ? router_head_label(h, (size_t)d->best_idx) : "", "us",
                             (double)ns / 1000, "scores", all, "evidence", why));
        return;
    }
    printf("%s  (reason %s, confidence %.3f, %.0f us)\n", d->label, router_reason_name(d->reason),
           d->confidence, (double)ns / 1000);
    for (size_t i = 0; i < labels; i++)
        if (scores[i] >= 0.01f)
            printf("  %-20s %.3f\n", router_head_label(h, i), (double)scores[i]);
    if (ev_count)
        printf("what spoke for it:");
    for (size_t i = 0; i < ev_count; i++)
        printf(" '%s' %+.2f", ev[i].ngram, ev[i].weight);
    if (ev_count)
        printf("\n");
}

static int verb_text(int argc, char **argv)
{
    const char *head_path = NULL, *encoder_path = NULL, *text = NULL;
    bool json = false;
    const struct cli_option options[] = {{"head", 0, CLI_TEXT, &head_path, "FILE", HEAD_HELP},
                                         {"encoder", 0, CLI_TEXT, &encoder_path, "PATH", ENCODER_HELP},
                                         {"json", 0, CLI_FLAG, &json, NULL, "one JSON object"},
                                         {0}};
    const struct cli_spec spec = {
        "route", "\"TEXT\"",
        "Decides which expert would answer a prompt, and says why: scores, confidence and the n-grams that\n"
        "spoke for it. Other verbs: 'route train', 'route eval', 'route replay', 'route sweep'.",
        "  switchyard route \"How many singers are there? Table: singer(id, name)\"\n"
        "  switchyard route train DATA.jsonl -o my.head\n"
        "  switchyard route eval TEST.jsonl --head my.head --json\n",
        options, 1, 1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &text, &args);
    if (exit != CLI_RUN)
        return exit;
    struct router_head *h = NULL;
    struct err e = {0};
    struct route_encoder *encoder = NULL;
    if (open_head(head_path, &h, &e) != ERR_OK)
        return cli_refuse("route", &e);
    if (open_encoder(encoder_path, &encoder, &e) != ERR_OK) {
        router_head_close(&h);
        return cli_refuse("route", &e);
    }
    warn_without_encoder(h, encoder);
    struct router_scratch *s = router_scratch_open(h);
    struct router_turn turn = {text, strlen(text)};
    struct router_options opt = {
        .threshold = (double)NAN, .generalist_idx = -1, .encoder = route_encoder_view(encoder)};
    struct router_decision d;
    struct router_evidence ev[ROUTER_REASONS_MAX];
    float *scores = mem_array(router_head_labels(h), sizeof(*scores));
    router_decide(h, s, &turn, 1, &opt, &d, scores); /* once to warm the caches, then timed */
    uint64_t start = clock_ns();
    router_decide(h, s, &turn, 1, &opt, &d, scores);
    uint64_t ns = clock_ns() - start;
    size_t n = d.best_idx < 0 ? 0 : router_explain(h, s, &turn, 1, d.best_idx, ev, BASE_COUNT(ev));
    print_decision(h, &d, scores, ev, n, ns, json);
    free(scores);
    router_scratch_close(&s);
    router_head_close(&h);
    route_encoder_close(&encoder);
    return CLI_DONE;
}

/* ---- training ------------------------------------------------------------------------------------------------ */

static void print_training(const struct router_train_report *r, const char *out, bool json)
{
    if (json) {
        json_print_line(json_pack("{s:s,s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:f,s:f}", "head", out, "rows",
                             (json_int_t)r->rows, "labels", (json_int_t)r->labels, "features",
                             (json_int_t)r->features, "bytes", (json_int_t)r->head_bytes, "train_accuracy",
                             r->train_accuracy, "val_accuracy", r->val_accuracy, "temperature",
                             r->temperature, "threshold", r->threshold, "ece", r->ece, "seconds",
                             r->seconds));
        return;
    }
    char bytes[32];
    printf("wrote %s: %zu labels from %zu rows, %s, in %.1f s\n"
           "accuracy %.2f %% on training rows, %.2f %% on held-out ones; temperature %.2f, threshold %.2f, "
           "ECE %.3f\n",
           out, r->labels, r->rows, size_format(r->head_bytes, bytes, sizeof(bytes)), r->seconds,
           100 * r->train_accuracy, 100 * r->val_accuracy, r->temperature, r->threshold, r->ece);
}

#define TRAIN_FILES_MAX 16
#define TRAIN_ENCODERS_MAX 8u

/* One encoder for every thread that training may use: the model is small, and each has its own step. */
struct training_encoders {
    struct route_encoder *model[TRAIN_ENCODERS_MAX];
    struct router_encoder view[TRAIN_ENCODERS_MAX];
    size_t count;
};

static enum err_code open_training_encoders(const char *path, struct training_encoders *n, unsigned threads,
                                            struct err *e)
{
    enum err_code code = ERR_OK;
    for (unsigned i = 0; i < BASE_MIN(threads, TRAIN_ENCODERS_MAX) && code == ERR_OK; i++) {
        code = open_encoder(path, &n->model[i], e);
        if (code != ERR_OK || n->model[i] == NULL)
            return code;
        n->view[n->count++] = *route_encoder_view(n->model[i]);
    }
    return code;
}

static void close_training_encoders(struct training_encoders *n)
{
    for (size_t i = 0; i < n->count; i++)
        route_encoder_close(&n->model[i]);
}

static int verb_train(int argc, char **argv)
{
    const char *data_paths[TRAIN_FILES_MAX] = {0}, *val_path = NULL, *out = NULL;
    const char *encoder_path = NULL, *cache_path = NULL;
    uint64_t seed = 0, threads = 0;
    bool json = false;
    const struct cli_option options[] = {
        {"out", 'o', CLI_TEXT, &out, "HEAD", "the head file to write (required)"},
        {"val", 0, CLI_TEXT, &val_path, "FILE", "rows for calibration (default: a tenth of DATA)"},
        {"encoder", 0, CLI_TEXT, &encoder_path, "PATH", ENCODER_HELP},
        {"cache", 0, CLI_TEXT, &cache_path, "FILE", "keep the encoder's vectors here: the next training is faster"},
        {"seed", 0, CLI_UINT, &seed, "N", "of what training draws (default 0)"},
        {"threads", 0, CLI_UINT, &threads, "N", "default: all usable; the result does not depend on it", 0, 256},
        {"json", 0, CLI_FLAG, &json, NULL, "print the report as one JSON object"},
        {0}};
    const struct cli_spec spec = {
        "route train", "DATA.jsonl... -o HEAD",
        "Trains a router from lines {\"text\", \"expert\"}, of one file or several: n-grams, and with an encoder\n"
        "the stage that is asked where they are not sure. The label `general` means that no specialist should\n"
        "answer. Lines with \"source\": \"wording\" are ways to ask: {} is filled with the inputs of other lines,\n"
        "{a|b} stands for one of its alternatives. The same data gives the same bytes.",
        "  switchyard route train data.jsonl wordings.jsonl --val held-out.jsonl -o router.head\n", options, 1,
        TRAIN_FILES_MAX};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, data_paths, &args);
    if (exit != CLI_RUN)
        return exit;
    if (out == NULL)
        return cli_wrong("route train", "-o is missing: which file should be written?");
    struct router_data data = {0}, val = {0};
    struct router_train_options opt = {.seed = seed,
                                       .threads = threads ? (unsigned)threads : cpu_count_usable(),
                                       .max_bytes = 3 * 1000 * 1000,
                                       .cache_path = cache_path};
    struct training_encoders encoders = {0};
    struct router_train_report report = {0};
    struct buf head = {0};
    struct err e = {0};
    struct cli_bar bar;
    cli_bar_init(&bar);
    struct progress progress = cli_bar_progress(&bar);
    enum err_code code = ERR_OK;
    for (size_t i = 0; code == ERR_OK && i < args; i++)
        code = router_data_append(data_paths[i], &data, &e);
    if (code == ERR_OK && val_path)
        code = router_data_load(val_path, &val, &e);
    if (code == ERR_OK)
        code = open_training_encoders(encoder_path, &encoders, opt.threads, &e);
    opt.encoders = encoders.view;
    opt.encoders_count = encoders.count;
    if (code == ERR_OK)
        code = router_train(&data, val_path ? &val : NULL, &opt, &progress, &head, &report, &e);
    close_training_encoders(&encoders);
    cli_bar_done(&bar);
    if (code == ERR_OK)
        code = file_write_atomic(out, head.data, head.len, &e);
    buf_done(&head);
    router_data_done(&data);
    router_data_done(&val);
    if (code != ERR_OK)
        return cli_refuse("route train", &e);
    print_training(&report, out, json);
    return CLI_DONE;
}

/* ---- evaluation ---------------------------------------------------------------------------------------------- */

static json_t *real_or_null(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static void print_eval_json(const struct router_head *h, const struct router_eval_report *r)
{
    json_t *per = json_object(), *curve = json_array(), *confusion = json_object();
    for (size_t i = 0; i < r->labels; i++) {
        json_t *row = json_object();
        json_object_set_new(per, router_head_label(h, i), real_or_null(r->per_label[i]));
        for (size_t k = 0; k < r->labels; k++)
            if (r->confusion[i * r->labels + k])
                json_object_set_new(row, router_head_label(h, k),
                                    json_integer(r->confusion[i * r->labels + k]));
        json_object_set_new(confusion, router_head_label(h, i), row);
    }
    for (size_t i = 0; i < BASE_COUNT(r->coverage_curve) - 1; i++)
        json_array_append_new(curve, json_pack("[f,o]", 1 - (double)i * 0.05,
                                               real_or_null(r->coverage_curve[i])));
    json_print_line(json_pack("{s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:o,s:o,s:o}", "n", (json_int_t)r->n,
                         "accuracy", r->accuracy, "macro_f1", r->macro_f1, "ece", r->ece, "abstained",
                         r->abstained, "coverage", r->coverage, "latency_us_p50", r->latency_us_p50,
                         "latency_us_p99", r->latency_us_p99, "expert_to_general", r->expert_to_general,
                         "expert_to_other", r->expert_to_other, "general_to_expert", r->general_to_expert, "encoder_share",
                         r->answered_by[ROUTER_STAGE_ENCODER],
                         "per_expert", per, "coverage_curve", curve, "confusion", confusion));
}

static void print_eval_text(const struct router_head *h, const struct router_eval_report *r)
{
    printf("%zu prompts: accuracy %.2f %%, macro F1 %.2f %%, ECE %.3f, abstained %.1f %%\n"
           "errors: expert to general %.2f %%, expert to other %.2f %%, general to expert %.2f %%\n"
           "latency: p50 %.0f us, p99 %.0f us; answered by n-grams %.1f %%, by the encoder %.1f %%\n",
           r->n, 100 * r->accuracy, 100 * r->macro_f1, r->ece, 100 * r->abstained, 100 * r->expert_to_general,
           100 * r->expert_to_other, 100 * r->general_to_expert, r->latency_us_p50, r->latency_us_p99,
           100 * r->answered_by[ROUTER_STAGE_NGRAM], 100 * r->answered_by[ROUTER_STAGE_ENCODER]);
    for (size_t i = 0; i < r->labels; i++)
        if (isfinite(r->per_label[i]))
            printf("  %-20s %6.2f %%\n", router_head_label(h, i), 100 * r->per_label[i]);
    printf("accuracy of the most confident: 100 %% %.2f, 90 %% %.2f, 80 %% %.2f\n", 100 * r->coverage_curve[0],
           100 * r->coverage_curve[2], 100 * r->coverage_curve[4]);
}

static int verb_eval(int argc, char **argv)
{
    const char *data_path = NULL, *head_path = NULL, *encoder_path = NULL, *stage = "cascade";
    bool json = false;
    const struct cli_option options[] = {{"head", 0, CLI_TEXT, &head_path, "FILE", HEAD_HELP},
                                         {"encoder", 0, CLI_TEXT, &encoder_path, "PATH", ENCODER_HELP},
                                         {"stage", 0, CLI_TEXT, &stage, "NAME", "cascade (default), ngram or encoder: measure a stage by itself"},
                                         {"json", 0, CLI_FLAG, &json, NULL, "one JSON object"},
                                         {0}};
    const struct cli_spec spec = {"route eval", "DATA.jsonl",
                                  "Measures a head on lines {\"text\", \"expert\"}: accuracy, calibration, the kinds of\n"
                                  "errors, the coverage curve, latency. An abstention counts as `general`.",
                                  "  switchyard route eval test.jsonl --head router.head\n", options, 1, 1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &data_path, &args);
    if (exit != CLI_RUN)
        return exit;
    struct router_head *h = NULL;
    struct router_data data = {0};
    struct router_eval_report r = {0};
    struct router_options opt = {.threshold = (double)NAN, .generalist_idx = -1};
    struct route_encoder *encoder = NULL;
    struct err e = {0};
    if (strcmp(stage, "cascade") != 0 && strcmp(stage, "ngram") != 0 && strcmp(stage, "encoder") != 0)
        return cli_wrong("route eval", "--stage is cascade, ngram or encoder");
    enum err_code code = open_head(head_path, &h, &e);
    if (code == ERR_OK && strcmp(stage, "ngram") != 0)
        code = open_encoder(encoder_path, &encoder, &e);
    if (code == ERR_OK && strcmp(stage, "ngram") != 0)
        warn_without_encoder(h, encoder);
    opt.encoder = route_encoder_view(encoder);
    opt.encoder_always = strcmp(stage, "encoder") == 0;
    if (code == ERR_OK)
        code = router_data_load(data_path, &data, &e);
    if (code == ERR_OK)
        code = router_eval(h, &data, &opt, &r, &e);
    if (code == ERR_OK)
        (json ? print_eval_json : print_eval_text)(h, &r);
    router_eval_report_done(&r);
    router_data_done(&data);
    router_head_close(&h);
    route_encoder_close(&encoder);
    return code == ERR_OK ? CLI_DONE : cli_refuse("route eval", &e);
}

int cmd_route(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "train") == 0)
        return verb_train(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "eval") == 0)
        return verb_eval(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "replay") == 0)
        return cmd_route_replay(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "sweep") == 0)
        return cmd_route_sweep(argc - 1, argv + 1);
    return verb_text(argc, argv);
}
