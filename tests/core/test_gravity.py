"""Egress and storage: graduated tariffs, and what is unknown."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.adapters.snapshot_prices import load_tariffs
from launcher.core.gravity import (
    Egress,
    Requests,
    Tariff,
    Tariffs,
    Tranche,
    egress,
    flat,
    graduated_usd,
    nat_usd,
    requests_of,
    store_of,
)
from launcher.core.unknown import Unknown

PUBLISHED = load_tariffs()


def usd(found: Egress | Unknown) -> Decimal:
    assert isinstance(found, Egress), found
    return found.usd


def test_100_tb_at_nine_cents_is_9000_dollars_exactly() -> None:
    tariffs = Tariffs(internet={"aws": flat(Decimal("0.09"))})

    found = egress(tariffs, source="aws/us-east-2", provider="gcp", region="us-central1", gb=100_000)

    assert usd(found) == Decimal("9000.00")


def test_every_tranche_of_awss_real_tariff_is_billed_at_its_own_price() -> None:
    found = egress(PUBLISHED, source="aws/us-east-2", provider="gcp", region="us-central1", gb=100_000)

    # 100 GB free, then to 10 TB, to 50 TB, to 150 TB, with 1 TB = 1,024 GB
    by_hand = 10_140 * Decimal("0.09") + 40_960 * Decimal("0.085") + 48_800 * Decimal("0.07")
    assert usd(found) == by_hand == Decimal("7810.20")


@pytest.mark.parametrize("place", ["aws/us-east-2", "vast/France, FR, EU", "nowhere/r1"])
def test_reading_in_the_same_region_is_free(place: str) -> None:
    provider, _, region = place.partition("/")

    found = egress(PUBLISHED, source=place, provider=provider, region=region, gb=500)

    assert found == Egress(usd=Decimal(0), basis="same region")


def test_a_region_of_the_same_name_at_another_provider_is_elsewhere() -> None:
    found = egress(PUBLISHED, source="nebius/us-central1", provider="gcp", region="us-central1", gb=1000)

    assert usd(found) == Decimal(15)


@pytest.mark.parametrize(
    ("from_", "to", "usd_per_gb"),
    [
        ("us-east-1", "us-east-2", "0.01"),
        ("us-east-2", "us-west-2", "0.02"),
        ("ap-northeast-1", "us-east-1", "0.09"),
        ("af-south-1", "us-east-1", "0.147"),
    ],
)
def test_aws_bills_each_pair_of_regions_at_its_own_price(from_: str, to: str, usd_per_gb: str) -> None:
    found = egress(PUBLISHED, source=f"aws/{from_}", provider="aws", region=to, gb=1000)

    assert usd(found) == 1000 * Decimal(usd_per_gb)


def test_an_aws_region_that_is_not_in_the_matrix_is_unknown_not_cheap() -> None:
    found = egress(PUBLISHED, source="aws/us-east-1", provider="aws", region="mars-north-1", gb=1)

    assert found == Unknown("no aws tariff is known from us-east-1 to mars-north-1")


@pytest.mark.parametrize(
    ("source", "region", "usd_per_gb"),
    [
        ("gcp/us-central1", "us-east5", "0.02"),
        ("gcp/us-central1", "europe-west4", "0.08"),
        ("gcp/europe-west4", "europe-north1", "0.02"),
        ("gcp/us-central1", "australia-southeast1", "0.15"),
        ("gcp/asia-southeast2", "asia-southeast1", "0.15"),  # Jakarta, which is not priced as the rest of Asia
        ("gcp/africa-south1", "australia-southeast1", "0.157"),  # the dearer of the two
        ("azure/eastus", "westus3", "0.02"),
        ("azure/eastus", "japaneast", "0.05"),
        ("azure/japaneast", "eastus", "0.08"),
        ("azure/brazilsouth", "eastus", "0.16"),
    ],
)
def test_between_regions_the_continents_set_the_price(source: str, region: str, usd_per_gb: str) -> None:
    found = egress(PUBLISHED, source=source, provider=source.partition("/")[0], region=region, gb=1000)

    assert usd(found) == 1000 * Decimal(usd_per_gb)


@pytest.mark.parametrize("source", ["gcp/us", "gcp/nam4"])
def test_a_bucket_in_several_regions_is_elsewhere_in_each_of_them(source: str) -> None:
    near = egress(PUBLISHED, source=source, provider="gcp", region="us-central1", gb=1000)
    far = egress(PUBLISHED, source=source, provider="gcp", region="europe-west4", gb=1000)

    assert (usd(near), usd(far)) == (20, 80)


@pytest.mark.parametrize("pair", [("gcp/moon-1", "us-central1"), ("gcp/us-central1", "moon-1")])
def test_a_region_on_no_known_continent_is_unknown_not_near(pair: tuple[str, str]) -> None:
    found = egress(PUBLISHED, source=pair[0], provider="gcp", region=pair[1], gb=1)

    assert found == Unknown("nobody knows on which continent gcp's moon-1 is")


def test_data_of_one_zone_is_billed_in_the_next_one() -> None:
    source = "aws/us-east-2/use2-az1"

    here = egress(PUBLISHED, source=source, provider="aws", region="us-east-2", zone="use2-az1", gb=1000)
    beside = egress(PUBLISHED, source=source, provider="aws", region="us-east-2", zone="use2-az2", gb=1000)
    unsaid = egress(PUBLISHED, source=source, provider="aws", region="us-east-2", gb=1000)

    assert (usd(here), usd(beside), usd(unsaid)) == (0, 20, 20)


def test_what_is_moved_again_and_again_uses_up_a_free_tranche_once() -> None:
    def moved(gb: float, *, is_repeated: bool) -> Decimal:
        place = {"source": "aws/us-east-2", "provider": "gcp", "region": "us-central1"}
        return usd(egress(PUBLISHED, **place, gb=gb, is_repeated=is_repeated))

    assert moved(98, is_repeated=False) == 0
    assert moved(98, is_repeated=True) == 98 * Decimal("0.09")


def test_a_nat_gateway_is_paid_by_the_gigabyte_and_is_unknown_where_nobody_published_it() -> None:
    assert nat_usd(PUBLISHED, "aws", 1000) == 45
    assert nat_usd(PUBLISHED, "lambda", 1) == Unknown("no NAT gateway tariff is known for lambda")


def test_requests_that_nobody_priced_are_bounded_by_the_dearest() -> None:
    known, source = requests_of(PUBLISHED, "aws")
    bound, why = requests_of(PUBLISHED, "oci")

    assert (1000 * known.put_usd, 1000 * known.get_usd) == (Decimal("0.005"), Decimal("0.0004"))
    assert source == "aws's price list"
    assert bound.put_usd == max(one.put_usd for one in PUBLISHED.requests.values())
    assert "unknown" in why
    assert requests_of(PUBLISHED, "coreweave")[0] == Requests(put_usd=Decimal(0), get_usd=Decimal(0))


@pytest.mark.parametrize(
    ("uri", "store"), [("s3://b/x", "aws"), ("gs://b", "gcp"), ("abfss://b", "azure"), ("/data", None), (None, None)]
)
def test_a_uri_names_its_store(uri: str | None, store: str | None) -> None:
    assert store_of(uri) == store


def test_regions_without_a_tariff_of_their_own_pay_for_the_internet() -> None:
    found = egress(PUBLISHED, source="oci/us-ashburn-1", provider="oci", region="us-chicago-1", gb=20_240)

    assert usd(found) == 10_000 * Decimal("0.0085")
    assert isinstance(found, Egress)
    assert "at its internet tariff" in found.basis


@pytest.mark.parametrize("source", ["vast/Texas, US, NA", "local/desk", "aws", "", "/us-east-1", "aws/"])
def test_an_unknown_tariff_is_never_free(source: str) -> None:
    found = egress(PUBLISHED, source=source, provider="gcp", region="us-central1", gb=1)

    assert isinstance(found, Unknown)
    assert found.reason


def test_a_providers_missing_region_tariff_is_not_another_providers() -> None:
    tariffs = Tariffs(internet={"aws": flat(Decimal("0.09"))}, pairs={"gcp": {("a", "b"): Decimal("0.02")}})

    assert isinstance(egress(tariffs, source="gcp/a", provider="aws", region="b", gb=1), Unknown)
    assert isinstance(egress(tariffs, source="oci/a", provider="oci", region="b", gb=1), Unknown)


def test_nothing_moved_costs_nothing() -> None:
    assert usd(egress(PUBLISHED, source="aws/us-east-2", provider="gcp", region="us-central1", gb=0)) == 0


def test_a_negative_amount_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be moved"):
        graduated_usd(flat(Decimal("0.09")), Decimal(-1))


@pytest.mark.parametrize("bounds", [[], [1], [0, 0], [0, 9, 5]])
def test_tranches_begin_at_zero_and_ascend(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="then ascending"):
        Tariff(tranches=tuple(Tranche(from_gb=Decimal(b), usd_per_gb=Decimal(1)) for b in bounds))


gigabytes = st.decimals(min_value=0, max_value=1_000_000, places=3)
prices = st.decimals(min_value=0, max_value=1, places=4)


@st.composite
def tariffs(draw: st.DrawFn, last_bound: int = 500_000) -> Tariff:
    bounds = [Decimal(0), *sorted(draw(st.sets(st.integers(1, last_bound).map(Decimal), max_size=5)))]
    return Tariff(tranches=tuple(Tranche(from_gb=bound, usd_per_gb=draw(prices)) for bound in bounds))


@given(tariffs(), gigabytes, gigabytes)
def test_a_graduated_bill_is_continuous_and_never_falls(tariff: Tariff, first: Decimal, second: Decimal) -> None:
    low, high = sorted((first, second))
    dearest = max(tranche.usd_per_gb for tranche in tariff.tranches)

    added = graduated_usd(tariff, high) - graduated_usd(tariff, low)

    assert 0 <= added <= (high - low) * dearest


@given(tariffs(last_bound=200), st.integers(0, 300))
def test_a_graduated_bill_is_the_sum_of_its_gigabytes(tariff: Tariff, gb: int) -> None:
    one_by_one = Decimal(0)
    for sent in range(gb):
        one_by_one += [tranche.usd_per_gb for tranche in tariff.tranches if tranche.from_gb <= sent][-1]

    assert one_by_one == graduated_usd(tariff, Decimal(gb))
