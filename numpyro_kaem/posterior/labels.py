"""Names for the axes of a posterior's arrays: xarray datasets with the dimensions of the model's plates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from numpyro_kaem.models.latent_model import LatentModel

if TYPE_CHECKING:
    import xarray as xr

Variable = tuple[list[str], np.ndarray]


class Labels:
    """Dimensions and coordinates of arrays `(num_data, ...)`, whose first the datasets have where there is a plate."""

    def __init__(
        self, latent_model: LatentModel, coords: Mapping[str, Any] | None, dims: Mapping[str, Sequence[str]] | None
    ):
        self.latent_model = latent_model
        self.coords, self.dims = dict(coords or {}), dict(dims or {})
        self.data_dims = [] if latent_model.plate is None else [latent_model.plate]

    def of_site(self, name: str, num_axes: int) -> list[str]:
        """Names of the axes of a site's value, after that of the data."""
        structure = self.latent_model.structure
        # The shape of a deterministic site is not known to have event dimensions.
        deterministic = structure.deterministic.get(name)
        site_plates = structure.sites[name].plates if deterministic is None else deterministic
        event_dim = structure.sites[name].event_dim if deterministic is None else 0
        plates: list[str | None] = [None] * num_axes
        data_dim = site_plates.get(self.latent_model.plate)
        for plate, dim in site_plates.items():
            # Without the data axis, what was left of it is one closer to the end.
            axis = dim - event_dim + (data_dim is not None and dim < data_dim)
            if plate != self.latent_model.plate and -axis <= num_axes:
                plates[axis] = plate
        return self._complete(name, plates)

    def of_array(self, name: str, num_axes: int) -> list[str]:
        """Names of the axes of an array that is no site, after that of the data."""
        return self._complete(name, [None] * num_axes)

    def check_names(self, names: set[str], dimensions: set[str]) -> None:
        """Raise a ValueError where the user names variables or dimensions that there are none of."""
        for argument, given, known in (("dims", set(self.dims), names), ("coords", set(self.coords), dimensions)):
            if given - known:
                raise ValueError(f"{argument} names {sorted(given - known)}, but there are only {sorted(known)}")

    def _complete(self, name: str, plates: list[str | None]) -> list[str]:
        given, without_plate = self.dims.get(name), plates.count(None)
        if given is None:
            given = [f"{name}_dim_{i}" for i in range(without_plate)]
        elif len(given) == len(plates):
            return list(given)
        elif len(given) != without_plate:
            raise ValueError(
                f"dims[{name!r}] must name the {without_plate} axes without a plate, or all {len(plates)} after the "
                f"data axis, got {list(given)}"
            )
        names = iter(given)
        return [next(names) if plate is None else plate for plate in plates]

    def by_datum(self, value: np.ndarray, names: Sequence[str] = ()) -> Variable:
        """Xarray's dimensions and values of an array `(num_data, ...)`."""
        return [*self.data_dims, *names], value if self.data_dims else value.squeeze(0)

    def by_draw(self, value: np.ndarray, num_chains: int, names: Sequence[str] = ()) -> Variable:
        """Xarray's dimensions and values of an array `(num_data, num_chains * num_draws, ...)`."""
        value = value.reshape(len(value), num_chains, -1, *value.shape[2:])
        value = np.moveaxis(value, 0, 2) if self.data_dims else value[0]
        return ["chain", "draw", *self.data_dims, *names], value

    def draws(
        self, values: dict[str, np.ndarray], num_chains: int, *, lack_events: bool = False, **coords: np.ndarray
    ) -> xr.Dataset:
        """The dataset of draws of several sites, or of log-likelihoods by site, which lack the axes of events."""
        variables = {}
        for name, value in values.items():
            num_axes = value.ndim - 2
            event_dim = self.latent_model.structure.sites[name].event_dim if lack_events else 0
            variables[name] = self.by_draw(value, num_chains, self.of_site(name, num_axes + event_dim)[:num_axes])
        return self.dataset(variables, **coords)

    def dataset(self, variables: dict[str, Variable], **coords: np.ndarray) -> xr.Dataset:
        """An xarray dataset whose dimensions have the user's coordinates, those given here, or numbers."""
        import xarray as xr

        data = xr.Dataset(variables)
        known: dict[Any, Any] = {**coords, **self.coords}
        return data.assign_coords({dim: known.get(dim, np.arange(size)) for dim, size in data.sizes.items()})
