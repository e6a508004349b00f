"""The facts of the published sets: classes that are whole, and mirrors worth asking."""

from mnistfast.data import published


def test_names_of_emnists_classes():
    sizes = {name: len(found.classes) for name, found in published.SETS.items() if name.startswith("emnist")}
    assert sizes == {
        "emnist-balanced": 47, "emnist-bymerge": 47, "emnist-byclass": 62,
        "emnist-digits": 10, "emnist-letters": 26, "emnist-mnist": 10,
    }  # fmt: skip
    assert published.SETS["emnist-balanced"].classes[36:] == tuple("abdefghnqrt")
    assert all(len(set(found.classes)) == len(found.classes) for found in published.SETS.values())


def test_every_mirror_is_a_folder_that_is_not_asked_in_vain():
    urls = [url for found in published.SETS.values() for url in found.mirrors] + list(published.CIFAR10_MIRRORS)
    assert all(url.startswith("http") and url.endswith("/") and "lecun" not in url for url in urls)
