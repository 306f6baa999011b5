/* router-train OUT [--val VAL.jsonl] DATA.jsonl...: trains a head exactly as the command line does
 * and says how good it is. A tool for making router/zoo.head; not installed. */
#include "router/router.h"

#include <stdlib.h>
#include <string.h>

static bool show_progress(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    (void)ctx;
    fprintf(stderr, "\r%s %3u%%", what, total > 0 ? (unsigned)(100 * done / total) : 0);
    return true;
}

static int fail(const struct err *e)
{
    fprintf(stderr, "router-train: %s\n", e->msg);
    return 1;
}

static enum err_code load(int argc, char **argv, struct router_data *train, struct router_data *val,
                          struct err *e)
{
    enum err_code code = ERR_OK;
    for (int i = 2; code == ERR_OK && i < argc; i++) {
        bool is_val = strcmp(argv[i], "--val") == 0 && i + 1 < argc;
        code = router_data_append(argv[is_val ? ++i : i], is_val ? val : train, e);
    }
    return code;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: router-train OUT [--val VAL.jsonl] DATA.jsonl...\n");
        return 2;
    }
    struct err e = {0};
    struct router_data train = {0}, val = {0};
    struct buf head = {0};
    struct router_train_report r = {0};
    const struct progress progress = {.report = show_progress};
    enum err_code code = load(argc, argv, &train, &val, &e);
    if (code == ERR_OK)
        code = router_train(&train, val.count > 0 ? &val : NULL, NULL, &progress, &head, &r, &e);
    if (code == ERR_OK)
        code = file_write_atomic(argv[1], head.data, head.len, &e);
    if (code == ERR_OK)
        printf(
            "\n%s: %zu rows, %zu labels, %zu features, %zu bytes; accuracy %.4f on training rows, "
            "%.4f on validation rows, ECE %.4f, temperature %.3f, threshold %.2f, %.1f s\n",
            argv[1], r.rows, r.labels, r.features, r.head_bytes, r.train_accuracy, r.val_accuracy,
            r.ece, r.temperature, r.threshold, r.seconds);
    router_data_done(&train);
    router_data_done(&val);
    buf_done(&head);
    return code == ERR_OK ? 0 : fail(&e);
}
